"""A checkpoint becomes a bundle: both halves are written, described in a manifest, and put in place at once."""

from __future__ import annotations

import errno
import platform
from importlib import metadata
from pathlib import Path
from typing import get_args

from numpy.typing import NDArray

from ayaedge.bundle import (
    DECODER,
    VISION,
    Bundle,
    Decoder,
    EmbeddingTable,
    Formats,
    Manifest,
    Source,
    Tokens,
    read_bundle,
)
from ayaedge.decoder import MAX_THREADS
from ayaedge.errors import CheckpointError, ExportError, check_options, whole_number
from ayaedge_export.bundle_writer import check_target, staged_directory, write_manifest
from ayaedge_export.checkpoint import Checkpoint, open_checkpoint, text_tensors
from ayaedge_export.decoder_gguf import ARCHITECTURES, Advance, write_decoder
from ayaedge_export.plan import VisionFormat, check_disk, plan_recipe
from ayaedge_export.tensors import WeightSource
from ayaedge_export.vision_graph import write_vision_graph
from ayaedge_export.vision_int8 import write_int8_vision_graph
from ayaedge_quant.imatrix import ImportanceMatrix
from ayaedge_quant.recipes import DECODER_FORMATS, DecoderFormat, Recipe, as_recipe

__all__ = [
    "DECODER_FORMATS",
    "VISION_FORMATS",
    "check_target",
    "default_name",
    "export_checkpoint",
    "open_checkpoint",
    "work_bytes",
]

VISION_FORMATS: tuple[VisionFormat, ...] = get_args(VisionFormat)

_WRITERS = ("ayaedge", "onnx", "gguf", "llama-cpp-python", "numpy")
"""Packages whose versions decide about the bytes of a bundle."""


def export_checkpoint(
    checkpoint: Checkpoint | str | Path,
    target: str | Path | None = None,
    *,
    quant: DecoderFormat | Recipe = "q4_k_m",
    vision: VisionFormat = "int8",
    importance: ImportanceMatrix | None = None,
    trace: bool = False,
    force: bool = False,
    threads: int | None = None,
    advance: Advance | None = None,
) -> Bundle:
    """Export a checkpoint to the bundle directory `target`, by default one named after it in the working directory.

    `quant` is a named format, or a recipe with types for single tensors; `importance` lets the encoders weigh each
    column by its mean squared input (`ayaedge_export.calibration`). `trace` takes the vision graph from PyTorch
    through optimum's exporter instead of building it from the weights; such a graph is fp32. `force` replaces an
    existing bundle once the new one is complete. `advance` is called with bytes of the checkpoint that are dealt
    with; in all it gets `work_bytes`.

    Raises InvalidOptionError, CheckpointError if the checkpoint cannot be exported, and ExportError if the target
    exists, its disk is too small, or the export could not be finished; then nothing is left under the target's name.
    """
    check_options(whole_number("threads", threads, least=1, most=MAX_THREADS, optional=True))
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    if trace and vision != "fp32":
        raise ExportError(
            f"a traced vision graph is fp32, not {vision}: add --vision fp32 or leave out --trace"
        )
    recipe = as_recipe(quant)
    target = Path(target) if target is not None else Path(default_name(checkpoint, recipe.format, vision))
    check_disk(plan_recipe(checkpoint, recipe, vision, target), target)
    try:
        with staged_directory(target, force=force) as staging:
            _write_vision(checkpoint, staging / VISION, vision, trace=trace, advance=advance)
            embeddings = write_decoder(
                checkpoint, staging / DECODER, recipe, importance=importance, threads=threads, advance=advance
            )
            formats = Formats(vision, recipe.format, (*recipe.adjustments, *_sources(importance)))
            write_manifest(staging, describe(checkpoint, embeddings, formats))
    except ValueError as error:  # a weight that is not finite, or does not fit the format
        raise CheckpointError(f"the checkpoint {checkpoint.directory}: {error}") from error
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise ExportError(f"{target} could not be written: {reason}; nothing was left behind") from error
    return read_bundle(target)


def _sources(importance: ImportanceMatrix | None) -> list[str]:
    return [f"importance from {name}" for name in importance.datasets or ("a file",)] if importance else []


def default_name(checkpoint: Checkpoint, quant: DecoderFormat, vision: VisionFormat) -> str:
    """The bundle's name, after the checkpoint's directory and both formats."""
    return f"{checkpoint.name}-{quant}-{vision}"


def work_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the checkpoint that an export deals with."""
    text = text_tensors(checkpoint.config.text)
    return sum(
        entry.nbytes
        for name, entry in checkpoint.tensors.entries.items()
        if name in text or name.startswith(("vision_tower.", "multi_modal_projector."))
    )


def describe(checkpoint: Checkpoint, embeddings: EmbeddingTable, formats: Formats) -> Manifest:
    """The manifest of a bundle made from `checkpoint`; files are added when they are written."""
    text, tokenizer = checkpoint.config.text, checkpoint.tokenizer
    return Manifest(
        source=Source(checkpoint.name, text.model_type, checkpoint.parameters, checkpoint.license),
        formats=formats,
        tiling=checkpoint.tiling,
        image_prompt=checkpoint.image_prompt,
        tokens=Tokens(
            special=dict(sorted(tokenizer.added.items(), key=lambda item: item[1])),
            named=tokenizer.named,
            image_patch=checkpoint.config.image_token_id,
            bos=tokenizer.added[tokenizer.bos],
            stop=checkpoint.stop_ids,
            hidden=tokenizer.hidden,
        ),
        decoder=Decoder(
            architecture=ARCHITECTURES[text.model_type],
            hidden_size=text.hidden_size,
            vocab_size=text.vocab_size,
            num_layers=text.num_layers,
            context_length=text.context_length,
            embeddings=embeddings,
            sliding_window=text.sliding_window,
        ),
        chat_template=checkpoint.chat_template,
        created_by=describe_writers(),
    )


def describe_writers() -> dict[str, str]:
    """Versions of everything that decides about the bytes of a bundle."""
    return {name: metadata.version(name) for name in _WRITERS} | {"machine": platform.machine()}


def _write_vision(
    checkpoint: Checkpoint, path: Path, fmt: VisionFormat, *, trace: bool, advance: Advance | None
) -> None:
    config = checkpoint.config.vision
    weights = _counted(checkpoint, advance)
    if trace:
        from ayaedge_export.vision_trace import trace_vision_graph

        trace_vision_graph(path, config, weights)
    elif fmt == "int8":
        write_int8_vision_graph(path, config, weights)
    else:
        write_vision_graph(path, config, weights, precision=fmt)


def _counted(checkpoint: Checkpoint, advance: Advance | None) -> WeightSource:
    """The checkpoint's weights, reporting each tensor the first time it is read."""
    seen: set[str] = set()

    def read(name: str) -> NDArray:  # type: ignore[type-arg]
        weights = checkpoint.tensors.read(name)
        if advance and name not in seen:
            seen.add(name)
            advance(checkpoint.tensors.entries[name].nbytes, name)
        return weights

    return read
