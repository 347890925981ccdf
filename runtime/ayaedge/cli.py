"""The command line: arguments in, answers on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ayaedge import NO_CACHE, Answer, AyaEdgeError, AyaVision, DecoderOptions, VisionOptions
from ayaedge import cli_export as exporting
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cli_cache import app as cache_app
from ayaedge.cli_export import BundleArgument
from ayaedge.console import JsonFlag, size_text, stderr, write

app = typer.Typer(
    help="Run Aya Vision, a vision-language model for 23 languages, on an ordinary computer, offline.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_KILLED = 128
"""Exit code of a process that a signal ended, less the signal's number."""


def main() -> None:
    """Run the command line; a known error is one line on stderr and exit code 1, Ctrl-C exit code 130."""
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # answers come in 23 languages, whatever the terminal's encoding
        sys.stdout.reconfigure(encoding="utf-8")
    for name in ("SIGTERM", "SIGHUP"):  # unfinished work is tidied up on the way out
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, _: sys.exit(_KILLED + number))
    try:
        app()
    except AyaEdgeError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(_KILLED + signal.SIGINT)
    except BrokenPipeError:  # the reader of stdout has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    stderr.print(Text("error: ", "bold red").append(message, "default not bold"))
    sys.exit(1)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[
        Path | None,
        typer.Option("-m", "--model", help="Bundle directory; without it the demonstration model."),
    ] = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="A picture; repeatable.")] = None,
    system: Annotated[
        str | None, typer.Option("-s", "--system", help="Instruction before the question.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", help="Most tokens of the answer.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is deterministic.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many of the likeliest tokens; 0 keeps all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Of the random numbers.")] = None,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles of a picture: fewer are faster.")] = None,
    ctx_size: Annotated[int | None, typer.Option("-c", "--ctx-size", help="Tokens of context.")] = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Processor threads.")] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep what was computed for pictures, in files that only you can read.")
    ] = True,
    as_json: JsonFlag = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the libraries' messages.")] = False,
) -> None:
    """Ask a question about one or more pictures, or without any."""
    if verbose:
        _show_messages()
    if model is None:
        stderr.print(
            "Using the small demonstration model that ships with ayaedge: it only knows coloured shapes and numbers.\n"
            "For the real one: ayaedge export CHECKPOINT, then -m BUNDLE.",
            style="dim",
        )
    with AyaVision.load(
        model,
        decoder=DecoderOptions(context_size=ctx_size, threads=threads),
        vision=VisionOptions(threads=threads, verbose=verbose),
        cache=None if cache else NO_CACHE,
    ) as loaded:
        stream = loaded.stream(
            question, images=image or [], system=system, max_tokens=max_tokens, max_tiles=max_tiles,
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed,
        )  # fmt: skip
        for piece in stream:
            if not as_json:
                write(piece)
        _finish_answer(loaded, stream.answer, as_json=as_json, verbose=verbose)


@app.command()
def info(bundle: BundleArgument, as_json: JsonFlag = False) -> None:
    """Show what a bundle is and what it holds."""
    opened = read_bundle(bundle)
    if as_json:
        write(opened.manifest.to_json())
        return
    for name, value in _facts(opened):
        write(f"{name:<13} {value}\n")


for _command in (exporting.export, exporting.verify, exporting.plan, exporting.calibrate):
    app.command()(_command)
app.command("eval")(exporting.evaluate)
app.add_typer(cache_app, name="cache")


def _finish_answer(model: AyaVision, answer: Answer, *, as_json: bool, verbose: bool) -> None:
    if as_json:
        write(json.dumps({"model": model.bundle.name, **answer.to_dict()}, ensure_ascii=False) + "\n")
        return
    write("\n")
    if verbose:
        usage, timings = answer.usage, answer.timings
        stderr.print(
            f"{usage.prompt_tokens} prompt tokens ({usage.image_tokens} of pictures, tiles {list(usage.tiles)}; "
            f"{usage.cached_tokens} known), "
            f"{usage.completion_tokens} answered; vision {timings.vision:.2f} s, prefill {timings.prefill:.2f} s, "
            f"first token after {timings.first_token:.2f} s, decode {timings.decode:.2f} s",
            style="dim",
        )


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    tiling, decoder = manifest.tiling, manifest.decoder
    yield "bundle", f"{bundle.name} (format {manifest.format_version}, {size_text(bundle.size)})"
    yield "made from", f"{manifest.source.name}: {manifest.source.parameters / 1e6:,.1f} M parameters"
    yield "licence", manifest.source.license
    yield (
        "vision",
        f"{manifest.formats.vision}, tiles of {tiling.tile_size} px, at most {tiling.max_tiles} and a thumbnail",
    )
    yield "image tokens", f"{manifest.image_prompt.tokens_per_tile} for each tile"
    layers = f"{decoder.num_layers} layers of {decoder.hidden_size}"
    window = f", window {decoder.sliding_window}" if decoder.sliding_window else ""
    yield "decoder", f"{manifest.formats.decoder}, {decoder.architecture}, {layers}{window}"
    if manifest.formats.adjustments:
        yield "adjusted by", ", ".join(manifest.formats.adjustments)
    yield "context", f"{decoder.context_length} tokens"
    for name, info in manifest.files.items():
        yield name, f"{size_text(info.size)}, SHA-256 {info.sha256}"
    yield "written by", ", ".join(f"{name} {version}" for name, version in manifest.created_by.items())


def _show_messages() -> None:
    """Write what the libraries say to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger = logging.getLogger("ayaedge")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
