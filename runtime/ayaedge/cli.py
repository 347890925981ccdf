"""The command line: arguments in, answers on stdout, everything else on stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from ayaedge import (
    Answer,
    AyaEdgeError,
    AyaVision,
    BundleError,
    DecoderOptions,
    MissingExtraError,
    VisionOptions,
)
from ayaedge.bundle import Bundle, check_hashes, read_bundle
from ayaedge.errors import list_faults

if TYPE_CHECKING:
    from ayaedge_export.verify import Report

app = typer.Typer(
    help="Run Aya Vision, a vision-language model for 23 languages, on an ordinary computer, offline.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)

DecoderFormat = Literal["q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16", "f32"]
VisionFormat = Literal["int8", "fp16", "fp32"]

_REPORT_WIDTH = 120
_KILLED = 128
"""Exit code of a process that a signal ended, less the signal's number."""
JsonFlag = Annotated[bool, typer.Option("--json", help="Write one JSON object to stdout.")]
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle directory.")]


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
    ) as loaded:
        stream = loaded.stream(
            question, images=image or [], system=system, max_tokens=max_tokens, max_tiles=max_tiles,
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed,
        )  # fmt: skip
        for piece in stream:
            if not as_json:
                _write(piece)
        _finish_answer(loaded, stream.answer, as_json=as_json, verbose=verbose)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face checkpoint directory.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Bundle directory; by default named after the checkpoint."),
    ] = None,
    quant: Annotated[DecoderFormat, typer.Option(help="Number format of the decoder.")] = "q4_k_m",
    vision: Annotated[
        VisionFormat | None, typer.Option(help="Number format of the vision tower. [default: int8]")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="Trace the vision tower with PyTorch (fp32; extra: trace).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Processor threads.")] = None,
) -> None:
    """Turn a Hugging Face checkpoint of Aya Vision into a bundle."""
    exporter = _exporter("ayaedge export")
    vision = vision or ("fp32" if trace else "int8")
    opened = exporter.open_checkpoint(checkpoint)
    target = output or Path(exporter.default_name(opened, quant, vision))
    exporter.check_target(target, force=force)
    with _progress(exporter.work_bytes(opened)) as advance:
        bundle = exporter.export_checkpoint(
            opened,
            target,
            quant=quant,
            vision=vision,
            trace=trace,
            force=force,
            threads=threads,
            advance=advance,
        )
    stderr.print(
        Text("exported ", "green").append(f"{bundle.directory} ({_megabytes(bundle.size)})", "default")
    )


@app.command()
def info(bundle: BundleArgument, as_json: JsonFlag = False) -> None:
    """Show what a bundle is and what it holds."""
    opened = read_bundle(bundle)
    if as_json:
        _write(opened.manifest.to_json())
        return
    for name, value in _facts(opened):
        _write(f"{name:<13} {value}\n")


@app.command()
def verify(
    bundle: BundleArgument,
    against: Annotated[
        Path | None, typer.Option(help="The checkpoint that it was made from: measures how near it is.")
    ] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="With --against: also compare both routes to the vision graph.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check a bundle's files, and with a checkpoint its numbers; exit code 1 if anything is not as it should be."""
    opened = read_bundle(bundle)
    if faults := check_hashes(opened):
        raise BundleError(list_faults(f"the bundle {bundle}", faults))
    AyaVision.load(bundle).close()  # both halves load and belong together
    if against is None:
        if trace:
            raise typer.BadParameter("--trace needs --against CHECKPOINT")
        if as_json:
            _write(json.dumps({"files": "intact", "passed": True}) + "\n")
        else:
            stderr.print("[green]intact[/]: every file has the hash that was written, and both halves load")
        return
    _exporter("ayaedge verify --against")
    from ayaedge_export.verify import verify_bundle

    report = verify_bundle(opened, against, trace=trace)
    if as_json:
        _write(json.dumps(report.to_dict(), indent=2) + "\n")
    else:
        _print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _finish_answer(model: AyaVision, answer: Answer, *, as_json: bool, verbose: bool) -> None:
    if as_json:
        _write(json.dumps({"model": model.bundle.name, **answer.to_dict()}, ensure_ascii=False) + "\n")
        return
    _write("\n")
    if verbose:
        usage, timings = answer.usage, answer.timings
        stderr.print(
            f"{usage.prompt_tokens} prompt tokens ({usage.image_tokens} of pictures, tiles {list(usage.tiles)}), "
            f"{usage.completion_tokens} answered; vision {timings.vision:.2f} s, prefill {timings.prefill:.2f} s, "
            f"first token after {timings.first_token:.2f} s, decode {timings.decode:.2f} s",
            style="dim",
        )


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest = bundle.manifest
    tiling, decoder = manifest.tiling, manifest.decoder
    yield "bundle", f"{bundle.name} (format {manifest.format_version}, {_megabytes(bundle.size)})"
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
    yield "context", f"{decoder.context_length} tokens"
    for name, info in manifest.files.items():
        yield name, f"{_megabytes(info.size)}, SHA-256 {info.sha256}"
    yield "written by", ", ".join(f"{name} {version}" for name, version in manifest.created_by.items())


def _print_report(report: Report) -> None:
    table = Table("figure", "measured", "bar", "")
    for check in report.checks:
        table.add_row(
            check.name, f"{check.value:.3g}", check.bar, "[green]ok[/]" if check.passed else "[red]missed[/]"
        )
    # a pipe has no width: leave every figure on one line
    Console(highlight=False, width=None if sys.stdout.isatty() else _REPORT_WIDTH).print(table)


_F = TypeVar("_F", bound=Callable[..., Any])


def _exporter(purpose: str) -> Any:
    """The exporting package, which is optional."""
    try:
        import ayaedge_export
        import ayaedge_export.exporter
    except ImportError as error:
        if error.name in ("onnx", "gguf", "safetensors", "ayaedge_export", "ayaedge_quant"):
            raise MissingExtraError(purpose, "export") from error
        raise
    return ayaedge_export.exporter


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int, str], None]]:
    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=stderr, transient=True) as progress:
        task = progress.add_task("reading", total=total)

        def advance(count: int, what: str) -> None:
            progress.update(task, advance=count, description=what[-40:].rjust(40))

        yield advance


def _show_messages() -> None:
    """Write what the libraries say to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger = logging.getLogger("ayaedge")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)


def _write(text: str) -> None:
    if sys.stdout is None:
        raise OSError("there is no standard output to write the answer to")
    sys.stdout.write(text)
    sys.stdout.flush()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.2f} GB"
