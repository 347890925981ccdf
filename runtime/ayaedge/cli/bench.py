"""The command that measures a bundle on this machine, or one of true size with random weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from ayaedge.bench.benchmark import Measured, OtherDecode, OtherProgram, measure_bundle
from ayaedge.bench.process_watch import run_watched
from ayaedge.bench.report import benchmark_table, draw_benchmark, notes, to_dict
from ayaedge.bundle import MANIFEST, read_bundle
from ayaedge.cache.options import NAME_ANOTHER, cache_directory
from ayaedge.cli.console import (
    JsonFlag,
    announce,
    count_progress,
    print_table,
    stderr,
    write_json,
    write_line,
)
from ayaedge.cli.export import require_exporter
from ayaedge.errors import BackendError, InvalidOptionError, MissingExtraError
from ayaedge.manifest import Manifest

Shape = Literal["8b", "32b"]


class Other(StrEnum):
    """Programs to compare with; an enumeration because typer takes no list of literals."""

    BF16 = "transformers-bf16"
    FP32 = "transformers-fp32"


def bench(
    model: Annotated[
        Path | None,
        typer.Option(
            "-m", "--model", help="Bundle directory; without it, random weights of the 8B's true shape."
        ),
    ] = None,
    synthetic: Annotated[
        Shape | None, typer.Option(help="Measure random weights of this true shape (extra: export).")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help="With --synthetic: layers of the decoder, instead of all.")
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="An image; by default noise of 13 tiles."),
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option("-n", "--answer-tokens", min=1, help="Tokens of an answer that are timed.")
    ] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="How often the decoder's figures are measured.")] = 2,
    threads: Annotated[int | None, typer.Option("-t", "--threads", help="Processor threads.")] = None,
    against: Annotated[
        list[Other] | None,
        typer.Option(help="Measure transformers with the same shape as well; repeatable (extra: trace)."),
    ] = None,
    as_json: JsonFlag = False,
    chart: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw a bar chart.")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where bundles of random weights are kept; by default in the cache directory."
        ),
    ] = None,
) -> None:
    """Measure speed and memory on this machine, beside its limits and other programs."""
    others = [other.value for other in dict.fromkeys(against or [])]
    if others:
        _require_transformers()
    bundle = _find_bundle(model, synthetic, layers, keep, threads)
    shape = find_shape(read_bundle(bundle).manifest) if others else None
    with count_progress("measuring") as advance:
        measured = measure_bundle(
            bundle, threads=threads, image=image, answer_tokens=answer_tokens, rounds=rounds, on_step=advance
        )
        beside = []
        for done, name in enumerate(others):
            advance(done, len(others), name)
            assert shape is not None
            beside.append(measure_transformers(name, *shape, measured, threads))
    if chart:
        draw_benchmark(chart, measured, beside)
        announce("drawn:", str(chart))
    if as_json:
        write_json(to_dict(measured, beside), indent=2)
        return
    print_table(benchmark_table(measured, beside))
    for line in notes(measured, beside):
        write_line(line)


def find_shape(manifest: Manifest) -> tuple[Shape, int]:
    """Which of the true shapes a bundle has, and how many layers of it; InvalidOptionError if none."""
    require_exporter("ayaedge bench --against")
    from ayaedge_export.synthetic.bundle import MODELS

    decoder = manifest.decoder
    for shape, model in MODELS.items():
        sizes = (model.text.hidden_size, model.text.vocab_size)
        if sizes == (decoder.hidden_size, decoder.vocab_size) and decoder.num_layers <= model.text.num_layers:
            return shape, decoder.num_layers
    raise InvalidOptionError(
        f"--against needs a bundle of the shape of Aya Vision 8B or 32B; this one is {decoder.hidden_size} wide with "
        f"a vocabulary of {decoder.vocab_size}"
    )


def measure_transformers(
    name: str, shape: Shape, layers: int, measured: Measured, threads: int | None
) -> OtherProgram:
    """The same shape, tiles and length of prompt in transformers, in a process of its own."""
    question = measured.first_token
    command = [
        sys.executable, "-m", "ayaedge_export.synthetic.transformers_speed", "--shape", shape, "--layers", str(layers),
        "--precision", name.removeprefix("transformers-"), "--tiles", str(question.tiles),
        "--prompt-tokens", str(question.prompt_tokens),
    ]  # fmt: skip
    try:
        finished = run_watched(command if threads is None else [*command, "--threads", str(threads)])
    except BackendError as error:  # what was measured of ours must not be lost
        return OtherProgram(name.replace("-", " "), 0, 0, fault=str(error))
    found = json.loads(finished.output)
    decode = tuple(OtherDecode(part["context"], part["tokens_per_second"]) for part in found["decode"])
    return OtherProgram(
        name=name.replace("-", " "),
        needed_bytes=found["needed_bytes"],
        available_bytes=found["available_bytes"],
        tile_seconds=found["tile_seconds"],
        prefill=found["prefill"],
        first_token_seconds=found["first_token_seconds"],
        decode=decode,
        memory=finished.peak if decode else None,
    )


def _find_bundle(
    model: Path | None, synthetic: Shape | None, layers: int | None, keep: Path | None, threads: int | None
) -> Path:
    """The bundle that was named, or one of random weights, which is made if it is not there yet."""
    if model is None:
        return _random_bundle(synthetic or "8b", layers, keep or _random_directory(), threads)
    given = {"--synthetic": synthetic, "--layers": layers, "--keep": keep}
    if unfit := [name for name, value in given.items() if value is not None]:
        raise InvalidOptionError(f"-m names the bundle: {', '.join(unfit)} would make another one")
    return model


def _random_directory() -> Path:
    if (directory := cache_directory()) is None:
        raise InvalidOptionError(
            f"this user has no home directory to write it to: add --keep, or {NAME_ANOTHER}"
        )
    return directory / "synthetic"


def _random_bundle(shape: Shape, layers: int | None, directory: Path, threads: int | None) -> Path:
    cut = "" if layers is None else f"-{layers}-layers"
    target = directory / f"synthetic-aya-vision-{shape}{cut}"
    if (target / MANIFEST).is_file():
        return target
    require_exporter("ayaedge bench --synthetic")
    from ayaedge_export.synthetic.bundle import write_synthetic_bundle

    stderr.print(
        f"Making random weights of the shape of Aya Vision {shape.upper()}; they are kept for the next time."
    )
    directory.mkdir(parents=True, exist_ok=True)
    with count_progress("MB:") as advance:
        write_synthetic_bundle(target, shape, layers=layers, threads=threads, on_progress=advance)
    announce("written:", str(target))
    return target


def _require_transformers() -> None:
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise MissingExtraError("ayaedge bench --against", "trace")
