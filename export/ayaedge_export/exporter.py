"""A checkpoint becomes a bundle: both halves are written, described in a manifest, and put in place at once."""

from __future__ import annotations

import errno
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.checks import check_options, whole_number
from ayaedge.decoder.options import MAX_THREADS
from ayaedge.errors import CheckpointError, ExportError, InvalidOptionError
from ayaedge.hardware.machine import usable_threads
from ayaedge.manifest import DECODER, VISION, Formats
from ayaedge_export.best.rounding import FeedbackOptions
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint, check_finite, open_checkpoint
from ayaedge_export.checkpoint.logit_scale import choose_scale, scale_fault
from ayaedge_export.checkpoint.spec import text_tensors, vision_tensors
from ayaedge_export.decoder.gguf_writer import Advance, write_decoder
from ayaedge_export.effort import Budget, Effort, effort_faults
from ayaedge_export.manifest import describe, describe_writers
from ayaedge_export.plan import VisionFormat, check_disk, plan_recipe
from ayaedge_export.product_threads import bounded_products
from ayaedge_export.resume.eta import Countdown
from ayaedge_export.resume.journal import Journal
from ayaedge_export.resume.staged_bundle import check_target, staged_bundle, what_is_left, write_manifest
from ayaedge_export.resume.state_file import forget_states
from ayaedge_export.vision.graph import write_vision_graph
from ayaedge_export.vision.int8 import write_block_vision_graph, write_int8_vision_graph
from ayaedge_quant.blocks import SUPER_BLOCK
from ayaedge_quant.imatrix import ImportanceMatrix, read_imatrix, write_imatrix
from ayaedge_quant.recipes import DECODER_FORMATS, DecoderFormat, Recipe, as_recipe

__all__ = [
    "DECODER_FORMATS",
    "VISION_FORMATS",
    "check_target",
    "default_name",
    "export_checkpoint",
    "open_checkpoint",
    "what_is_left",
    "work_bytes",
]

VISION_FORMATS: tuple[VisionFormat, ...] = get_args(VisionFormat)

_AS_THE_FORMAT = Budget()
_USUAL_FEEDBACK = FeedbackOptions()
_IMPORTANCE = "../importance.gguf"
"""Beside the bundle's files, to which it does not belong."""
_VISION_DATA = f"{VISION}.data"


def export_checkpoint(
    checkpoint: Checkpoint | str | Path,
    target: str | Path | None = None,
    *,
    quant: DecoderFormat | Recipe = "q4_k_m",
    vision: VisionFormat = "int8",
    importance: ImportanceMatrix | None = None,
    calibrate: CalibrationText | None = None,
    effort: Effort | None = None,
    budget: Budget = _AS_THE_FORMAT,
    feedback: FeedbackOptions = _USUAL_FEEDBACK,
    logit_scale: float | None = None,
    trace: bool = False,
    force: bool = False,
    resume: bool = True,
    threads: int | None = None,
    advance: Advance | None = None,
) -> Bundle:
    """Export a checkpoint to the bundle directory `target`, by default one named after it in the working directory.

    `quant` is a named format, or a recipe with types for single tensors. `importance` lets the encoders weigh each
    column by its mean squared input; `calibrate` measures that first, on this text, once for an export that is
    interrupted (`calibration.imatrix`). `effort` says how the 4 bits are found: `fast` takes the weights as they
    are, `calibrated` measures an importance matrix (on the builtin text, if no other is given), `best` chooses types
    within `budget` and rounds with error `feedback` (`ayaedge_export.best.best`); by default what the other options ask
    for. `logit_scale` takes the place of the checkpoint's (`checkpoint.logit_scale`). `trace` takes the vision
    graph from PyTorch through optimum's exporter instead of building it from the weights; such a graph is fp32. `force`
    replaces an existing bundle once the new one is complete. `resume` goes on where an interrupted export of the same
    checkpoint to the same target with the same options has stopped; without it such an export begins anew. `advance` is
    called with bytes of the checkpoint that are dealt with; in all it gets `work_bytes`.

    Raises InvalidOptionError, CheckpointError if the checkpoint cannot be exported, and ExportError if the target
    exists, another export writes it, its disk is too small, or the export could not be finished. Nothing is ever left
    under the target's name; what is finished lies beside it for the next try, unless the checkpoint is at fault.
    """
    recipe = as_recipe(quant)
    check_options(
        whole_number("threads", threads, least=1, most=MAX_THREADS, optional=True),
        None
        if feedback.block > 0 and feedback.block % SUPER_BLOCK == 0
        else f"columns that make up for each other come in multiples of {SUPER_BLOCK}, not {feedback.block}",
        "importance and calibrate exclude each other" if importance and calibrate else None,
        scale_fault(logit_scale),
        *effort_faults(
            effort, recipe.format, budget, importance=importance is not None, text=calibrate is not None
        ),
    )
    if effort in ("calibrated", "best") and not importance:
        calibrate = calibrate or BUILTIN
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    checkpoint = choose_scale(checkpoint, logit_scale)
    if trace and vision != "fp32":
        raise ExportError(
            f"a traced vision graph is fp32, not {vision}: add --vision fp32 or leave out --trace"
        )
    target = Path(target) if target is not None else Path(default_name(checkpoint, recipe.format, vision))
    plan = plan_recipe(checkpoint, recipe, vision, target)
    weighed_by = importance.datasets or ("a file",) if importance else (calibrate.name,) if calibrate else ()
    formats = Formats(
        vision, recipe.format, (*recipe.adjustments, *(f"importance from {name}" for name in weighed_by))
    )
    advance = advance or _ignore
    extra_bytes = 0
    if effort == "best":
        from ayaedge_export.best.best import check_possible, state_bytes

        check_possible(checkpoint, recipe, budget)
        extra_bytes = state_bytes(checkpoint, feedback.tokens)
    try:
        settings = (effort, asdict(budget), asdict(feedback)) if effort == "best" else None
        mark = _fingerprint(checkpoint, formats, (importance or calibrate), settings, trace=trace)
        with (
            bounded_products(checkpoint.config.text.hidden_size, threads),
            staged_bundle(target, mark, force=force, resume=resume) as journal,
        ):
            check_disk(plan, target, present=journal.present_bytes, extra=extra_bytes)
            if trace and not journal.of(VISION):
                from ayaedge_export.vision.trace import check_memory

                check_memory(checkpoint.config.vision)
            if journal.pieces:  # they were written after this check
                advance(work_bytes(checkpoint) // 2, "checked before")
            else:
                check_finite(checkpoint, threads or usable_threads(), advance)
            journal.begin()
            if not journal.pieces:
                forget_states(journal.directory.parent)
            write_vision(checkpoint, journal, vision, trace=trace, advance=advance)
            source, figures = None, {}
            try:
                if calibrate and effort == "best":
                    from ayaedge_export.best.best import prepare_best  # which needs `describe`

                    best = prepare_best(
                        checkpoint,
                        journal,
                        recipe,
                        budget,
                        calibrate,
                        feedback,
                        threads=threads,
                        advance=advance,
                    )
                    recipe, source, figures = best.recipe, best.rounder, best.figures
                    formats = replace(formats, adjustments=(*recipe.adjustments, *best.adjustments))
                    planned = plan_recipe(checkpoint, recipe, vision)
                    check_disk(planned, target, present=journal.present_bytes, extra=extra_bytes)
                elif calibrate:
                    importance = _measured(checkpoint, journal, calibrate, advance)
                embeddings = write_decoder(
                    checkpoint, journal.directory / DECODER, recipe, importance=importance,
                    threads=threads, advance=advance, journal=journal, source=source,
                )  # fmt: skip
            except InvalidOptionError:  # a budget that cannot be kept
                raise
            except ValueError as error:  # a weight that does not fit its format
                raise CheckpointError(f"the checkpoint {checkpoint.directory}: {error}") from error
            manifest = describe(checkpoint, embeddings, formats)
            write_manifest(journal.directory, replace(manifest, parity=figures))
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        what = f"{target} could not be written"
        if error.filename and Path(str(error.filename)).parent == checkpoint.directory:
            what = f"the checkpoint {checkpoint.directory} could not be read"
        raise ExportError(f"{what}: {reason}; {what_is_left(target, resume=resume)}") from error
    return read_bundle(target)


def _fingerprint(
    checkpoint: Checkpoint,
    formats: Formats,
    importance: ImportanceMatrix | CalibrationText | None,
    effort: object,
    *,
    trace: bool,
) -> str:
    """Everything that decides about the bytes of a bundle, hashed; files of the checkpoint by size and time."""
    settings = (path for form in ("*.json", "*.jinja") for path in checkpoint.directory.glob(form))
    shards = {entry.file for entry in checkpoint.tensors.entries.values()}
    stats = {path.name: path.stat() for path in sorted({*settings, *shards})}
    facts = {
        "writers": describe_writers(),
        "directory": str(checkpoint.directory.resolve()),
        "files": {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()},
        "license": checkpoint.license,
        "formats": asdict(formats),
        "importance": importance.digest() if importance else None,
        "effort": effort,
        "logit_scale": checkpoint.config.text.logit_scale,
        "trace": trace,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _ignore(_count: int, _what: str) -> None:
    pass


def default_name(checkpoint: Checkpoint, quant: DecoderFormat, vision: VisionFormat) -> str:
    """The bundle's name, after the checkpoint's directory and both formats."""
    return f"{checkpoint.name}-{quant}-{vision}"


def work_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the checkpoint that an export deals with: every tensor is checked, then written."""
    names = (*text_tensors(checkpoint.config.text), *vision_tensors(checkpoint.config.vision))
    return 2 * sum(checkpoint.tensors.entries[name].nbytes for name in names)


def _measured(
    checkpoint: Checkpoint, journal: Journal, text: CalibrationText, advance: Advance
) -> ImportanceMatrix:
    """The importance matrix for `text`, kept until the bundle is complete."""
    from ayaedge_export.calibration.imatrix import collect

    path = journal.directory / _IMPORTANCE
    if not journal.of(_IMPORTANCE):
        countdown = Countdown(checkpoint.config.text.num_layers)

        def calibrated(done: int, of: int) -> None:
            advance(0, countdown.label(f"calibrating {done}/{of}", done))

        write_imatrix(path, collect(checkpoint, text, on_step=calibrated))
        journal.add_file(_IMPORTANCE)
    return read_imatrix(path)


def write_vision(
    checkpoint: Checkpoint, journal: Journal, fmt: VisionFormat, *, trace: bool, advance: Advance
) -> None:
    """Write the vision graph, or nothing if the journal has it; either way `advance` gets all of its bytes."""
    config = checkpoint.config.vision
    left = {name: checkpoint.tensors.entries[name].nbytes for name in vision_tensors(config)}

    def weights(name: str) -> NDArray[np.float32]:
        advance(left.pop(name, 0), name)  # a tensor counts the first time it is read
        return checkpoint.tensors.read(name)

    path = journal.directory / VISION
    if not journal.of(VISION):
        journal.forget(_VISION_DATA)
        if trace:
            from ayaedge_export.vision.trace import trace_vision_graph

            trace_vision_graph(path, config, weights)
        elif fmt == "int8":
            write_int8_vision_graph(path, config, weights)
        elif fmt == "int8-block":
            write_block_vision_graph(path, config, weights)
        else:
            write_vision_graph(path, config, weights, precision=fmt)
        for name in (_VISION_DATA, VISION):  # the graph last: where it is, both are
            if (journal.directory / name).exists():
                journal.add_file(name)
    advance(sum(left.values()), VISION)
