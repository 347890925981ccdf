"""The command line: arguments in, answers on stdout, everything else on stderr."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ayaedge import Answer, AyaEdgeError, AyaVision, Timings, __version__
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cli import export as exporting
from ayaedge.cli.batch import batch
from ayaedge.cli.bench import bench
from ayaedge.cli.cache import app as cache_app
from ayaedge.cli.chat import chat
from ayaedge.cli.console import (
    JsonFlag,
    print_error,
    print_warning,
    show_messages,
    size_text,
    stderr,
    step_progress,
    write,
    write_json,
    write_json_text,
    write_line,
)
from ayaedge.cli.doctor import doctor
from ayaedge.cli.export import BundleArgument
from ayaedge.cli.mcp import mcp
from ayaedge.cli.options import (
    ChoiceOption,
    GrammarOption,
    ImageOption,
    JsonSchemaOption,
    LoadingFlags,
    ModelOption,
    SamplingFlags,
    StopOption,
    TileFlags,
    grammar_of,
    schema_of,
    takes_flags,
)
from ayaedge.cli.plan import plan, tune
from ayaedge.cli.serve import serve
from ayaedge.errors import printable


class _Commands(TyperGroup):
    """All commands; a wrong use may quote whatever was given."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _printable_uses():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        with _printable_uses():
            return super().invoke(ctx)


@contextmanager
def _printable_uses() -> Iterator[None]:
    try:
        yield
    except _WrongUse as error:
        error.message = printable(error.message)  # type: ignore[attr-defined]
        raise


_WrongUse: type[Exception] = typer.BadParameter.__mro__[1]
"""click's UsageError, which some releases of typer carry in themselves."""
app = typer.Typer(
    cls=_Commands,
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
        with warnings.catch_warnings():
            warnings.showwarning = print_warning
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
    except Exception:  # noqa: BLE001 - a defect, which may quote a file
        stderr.print(traceback.format_exc())
        sys.exit(1)


def _fail(message: str) -> None:
    print_error(message)
    sys.exit(1)


def _show_version(wanted: bool) -> None:
    if wanted:
        write(f"ayaedge {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None: ...


@app.command()
@takes_flags
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: ModelOption = None,
    image: ImageOption = None,
    system: Annotated[
        str | None, typer.Option("-s", "--system", help="Instruction before the question.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", help="Most tokens of the answer.")
    ] = None,
    *,
    sampling: SamplingFlags,
    tiles: TileFlags,
    loading: LoadingFlags,
    stop: StopOption = None,
    json_schema: JsonSchemaOption = None,
    grammar: GrammarOption = None,
    choice: ChoiceOption = None,
    as_json: JsonFlag = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the libraries' messages.")] = False,
) -> None:
    """Ask a question about one or more images, or without any."""
    show_messages(logging.DEBUG if verbose else logging.WARNING)
    if model is None:
        stderr.print(
            "Using the small demonstration model that ships with ayaedge: it only knows coloured shapes and numbers.\n"
            "For the real one: ayaedge export CHECKPOINT, then -m BUNDLE.",
            style="dim",
        )
    with loading.load(model, verbose=verbose) as loaded:
        with step_progress() as on_progress:
            stream = loaded.stream(
                question, images=image or [], system=system, max_tokens=max_tokens, on_progress=on_progress,
                stop=stop or (), grammar=grammar_of(grammar), choices=choice, response_format=schema_of(json_schema),
                **tiles.keywords(), **sampling.keywords(),
            )  # fmt: skip
            first = next(stream, "")
        for piece in chain([first], stream):
            if not as_json:
                write(piece)
        _finish_answer(loaded, stream.answer, as_json=as_json, verbose=verbose)


@app.command()
def info(bundle: BundleArgument, as_json: JsonFlag = False) -> None:
    """Show what a bundle is and what it holds."""
    opened = read_bundle(bundle)
    if as_json:
        write_json_text(opened.manifest.to_json())
        return
    for name, value in _facts(opened):
        write_line(f"{name:<13} {value}")


for _command in (
    chat,
    batch,
    serve,
    mcp,
    plan,
    tune,
    doctor,
    bench,
    exporting.export,
    exporting.verify,
    exporting.calibrate,
):
    app.command()(_command)
app.command("eval")(exporting.evaluate)
app.add_typer(cache_app, name="cache")


def _finish_answer(model: AyaVision, answer: Answer, *, as_json: bool, verbose: bool) -> None:
    if as_json:
        write_json({"model": model.bundle.name, **answer.to_dict()})
        return
    write("\n")
    if verbose:
        usage, timings = answer.usage, answer.timings
        stderr.print(
            f"{usage.prompt_tokens} prompt tokens ({usage.image_tokens} of images, tiles {list(usage.tiles)}; "
            f"{usage.cached_tokens} known), "
            f"{usage.completion_tokens} answered; vision {timings.vision:.2f} s, prefill {timings.prefill:.2f} s"
            f"{_accelerated(timings)}, "
            f"first token after {timings.first_token:.2f} s"
            f"{_predicted(timings)}, decode {timings.decode:.2f} s",
            style="dim",
        )
        for number, image in enumerate(usage.images, 1):
            stderr.print(f"image {number}: {image}", style="dim")


def _predicted(timings: Timings) -> str:
    return "" if timings.predicted is None else f" ({timings.predicted:.2f} s were predicted)"


def _accelerated(timings: Timings) -> str:
    return "" if timings.acceleration == "off" else f" ({timings.acceleration})"


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
    if decoder.logit_scale is not None:
        yield "logit scale", f"{decoder.logit_scale:g}"
    if manifest.formats.adjustments:
        yield "adjusted by", ", ".join(manifest.formats.adjustments)
    for name, value in manifest.parity.items():
        yield "figure", f"{name}: {value:.3g}"
    yield "context", f"{decoder.context_length} tokens"
    for name, info in manifest.files.items():
        yield name, f"{size_text(info.size)}, SHA-256 {info.sha256}"
    yield "written by", ", ".join(f"{name} {version}" for name, version in manifest.created_by.items())
