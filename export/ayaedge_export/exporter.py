"""A checkpoint becomes a bundle: both halves are written, described in a manifest, and put in place at once."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.checks import check_options, instance, whole_number
from ayaedge.decoder.options import MAX_THREADS
from ayaedge.errors import CheckpointError, ExportError, InvalidOptionError
from ayaedge.hardware.machine import usable_threads
from ayaedge.manifest import DECODER, VISION, Formats, vision_file
from ayaedge_export.best.best import MeasuredTypes
from ayaedge_export.calibration.imatrix import MeasuredImportance
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint, Weights, check_finite
from ayaedge_export.checkpoint.config import VisionConfig
from ayaedge_export.checkpoint.tensors import WeightSource
from ayaedge_export.decoder.gguf_writer import Advance, write_decoder
from ayaedge_export.effort import (
    Budget,
    DecoderEffort,
    Effort,
    ExportRun,
    GptqOptions,
    PreparedDecoder,
    StoredWeights,
    effort_faults,
)
from ayaedge_export.manifest import describe, describe_writers
from ayaedge_export.matmul_threads import bounded_matmul
from ayaedge_export.merge.merge import MergedCheckpoint, MergeOptions, describe_merge, merge_facts
from ayaedge_export.plan import ExportPlan, VisionFormat, check_disk, default_name, plan_export
from ayaedge_export.resume.journal import Journal
from ayaedge_export.resume.staged_bundle import check_target, staged_bundle, what_is_left, write_manifest
from ayaedge_export.resume.state_file import forget_states
from ayaedge_export.vision.graph import write_vision_graph
from ayaedge_export.vision.int8 import write_block_vision_graph, write_int8_vision_graph
from ayaedge_quant.imatrix import ImportanceMatrix
from ayaedge_quant.recipes import DecoderFormat, Recipe

_AS_THE_FORMAT = Budget()


def export_checkpoint(
    checkpoint: Checkpoint | str | Path,
    target: str | Path | None = None,
    *,
    quant: DecoderFormat | Recipe = "q4_k_m",
    vision: str | Sequence[str] | None = None,
    importance: ImportanceMatrix | None = None,
    calibrate: CalibrationText | None = None,
    effort: Effort | None = None,
    budget: Budget = _AS_THE_FORMAT,
    gptq: GptqOptions | None = None,
    logit_scale: float | None = None,
    merge: MergeOptions | None = None,
    trace: bool = False,
    force: bool = False,
    resume: bool = True,
    threads: int | None = None,
    advance: Advance | None = None,
) -> Bundle:
    """Export a checkpoint to the bundle directory `target`, by default one named after it in the working directory.

    `quant` is a named format, or a recipe with types for single tensors. `vision` is by default `int8`, or `int8-block`
    on a processor that cannot multiply bytes without saturating, or `fp32` with `trace`; several formats make a bundle
    for processors and GPUs. `importance`, `calibrate`,
    `effort`, `budget` and `gptq` are those of `choose_effort`. `logit_scale` takes the place of the checkpoint's
    (`checkpoint.logit_scale`). `merge` combines the decoder's weights with a language model's. `trace` takes the vision
    graph from PyTorch through optimum's exporter instead of building it from the weights; such a graph is fp32. The
    rest is that of `write_bundle`, as are the errors.
    """
    plan = plan_export(
        checkpoint, target, quant=quant, vision=vision, logit_scale=logit_scale, merge=merge, trace=trace
    )
    chosen = choose_effort(plan, effort, importance=importance, calibrate=calibrate, budget=budget, gptq=gptq)
    return write_bundle(plan, chosen, force=force, resume=resume, threads=threads, advance=advance)


def plan_sweep(
    plan: ExportPlan, weights: Sequence[float], target: str | Path | None = None
) -> list[ExportPlan]:
    """Return the plans of a merge at several weights, of which `plan` is one; one bundle each.

    The bundles are named after `target` and the weight, by default after the checkpoint, the merge and the formats.
    Raises InvalidOptionError for a plan without a merge, and for weights that are none.
    """
    checkpoint = plan.checkpoint
    if not isinstance(checkpoint, MergedCheckpoint):
        raise InvalidOptionError("only a merge has weights to choose from")
    plans = []
    for merged in map(checkpoint.weighted, dict.fromkeys(map(float, weights))):
        name = default_name(merged, plan.recipe.format, plan.vision, *plan.vision_for_gpus)
        place = Path(name if target is None else f"{Path(target)}-{merged.weight}")
        plans.append(replace(plan, checkpoint=merged, target=place))
    return plans


def check_plans(plans: Sequence[ExportPlan], *, force: bool = False) -> None:
    """Raise ExportError unless all these bundles can be written, one after the other."""
    check_options(instance("force", force, bool))
    for plan in plans:
        check_target(plan.target, force=force)
    check_disk(plans[0], extra=sum(plan.disk_bytes for plan in plans[1:]))


def choose_effort(
    plan: ExportPlan,
    effort: Effort | None = None,
    *,
    importance: ImportanceMatrix | None = None,
    calibrate: CalibrationText | None = None,
    budget: Budget = _AS_THE_FORMAT,
    gptq: GptqOptions | None = None,
) -> DecoderEffort:
    """Return how the decoder's bits are found, once its options are known to go together.

    `fast` takes the weights as they are, and lets the encoders weigh each column by the `importance` that is given;
    `calibrated` measures that first, on the text `calibrate` or the builtin one, once for an export that is interrupted
    (`calibration.imatrix`); `best` chooses types within `budget` and rounds with `gptq` (`best.best`). By default it is
    what the other options ask for. Raises InvalidOptionError, and ExportError if `best` lacks its native kernels.
    """
    check_options(
        *effort_faults(
            effort, plan.recipe.format, budget, gptq,
            importance=importance is not None, text=calibrate is not None,
        )
    )  # fmt: skip
    if effort == "best":
        return MeasuredTypes.of(plan, calibrate or BUILTIN, budget, gptq or GptqOptions())
    if importance is None and (calibrate or effort == "calibrated"):
        return MeasuredImportance(calibrate or BUILTIN)
    return StoredWeights(importance)


def write_bundle(
    plan: ExportPlan,
    effort: DecoderEffort,
    *,
    force: bool = False,
    resume: bool = True,
    threads: int | None = None,
    advance: Advance | None = None,
) -> Bundle:
    """Write the bundle that was planned.

    `force` replaces an existing bundle once the new one is complete. `resume` goes on where an interrupted export of
    the same checkpoint to the same target with the same options has stopped; without it such an export begins anew.
    `advance` is called with bytes of the checkpoint that are dealt with; in all it gets `plan.work_bytes`.

    Raises InvalidOptionError, CheckpointError if the checkpoint cannot be exported, and ExportError if the target
    exists, another export writes it, its disk is too small, or the export could not be finished. Nothing is ever left
    under the target's name; what is finished lies next to it for the next try, unless the checkpoint is at fault.
    """
    check_options(
        instance("force", force, bool),
        instance("resume", resume, bool),
        whole_number("threads", threads, least=1, most=MAX_THREADS, optional=True),
    )
    advance = advance or _ignore
    with (
        _explained(plan, resume=resume),
        bounded_matmul(plan.checkpoint.config.text.hidden_size, threads),
        staged_bundle(plan.target, _fingerprint(plan, effort), force=force, resume=resume) as journal,
    ):
        check_disk(plan, present=journal.present_bytes, extra=effort.state_bytes)
        _check_sources(plan, journal, threads, advance)
        journal.begin()
        if not journal.pieces:
            forget_states(journal.directory.parent)
        write_vision(plan, journal, advance)
        with _faults_of(plan.checkpoint):
            prepared = effort.prepare(ExportRun(plan, journal, threads, advance))
            if prepared.plan is not plan:
                check_disk(prepared.plan, present=journal.present_bytes, extra=effort.state_bytes)
            embeddings = write_decoder(
                prepared.plan, journal.directory / DECODER, importance=prepared.importance,
                threads=threads, advance=advance, journal=journal, source=prepared.source,
            )  # fmt: skip
        manifest = describe(plan.checkpoint, embeddings, _formats(plan, prepared))
        source = replace(manifest.source, merge=describe_merge(plan.checkpoint))
        write_manifest(journal.directory, replace(manifest, source=source, parity=dict(prepared.figures)))
    return read_bundle(plan.target)


def write_vision(plan: ExportPlan, journal: Journal, advance: Advance) -> None:
    """Write the vision graphs that the journal does not have; either way `advance` gets all of their bytes."""
    tensors, config = plan.checkpoint.tensors, plan.checkpoint.config.vision
    left = {name: tensors.entries[name].nbytes for name in config.tensors}

    def weights(name: str) -> NDArray[np.float32]:
        advance(left.pop(name, 0), name)  # a tensor counts the first time it is read
        return tensors.read(name)

    graphs = {VISION: plan.vision} | {vision_file(form): form for form in plan.vision_for_gpus}
    for graph, form in graphs.items():
        if not journal.of(graph):
            journal.forget(f"{graph}.data")
            _write_graph(journal.directory / graph, form, config, weights, trace=plan.trace)
            for name in (f"{graph}.data", graph):  # the graph last: where it is, both are
                if (journal.directory / name).exists():
                    journal.add_file(name)
    advance(sum(left.values()), VISION)


def _write_graph(
    path: Path, form: VisionFormat, config: VisionConfig, weights: WeightSource, *, trace: bool
) -> None:
    if trace:
        from ayaedge_export.vision.trace import trace_vision_graph

        trace_vision_graph(path, config, weights)
    elif form == "int8":
        write_int8_vision_graph(path, config, weights)
    elif form == "int8-block":
        write_block_vision_graph(path, config, weights)
    else:
        write_vision_graph(path, config, weights, precision=form)


def _check_sources(plan: ExportPlan, journal: Journal, threads: int | None, advance: Advance) -> None:
    """Raise ExportError where a trace lacks memory, CheckpointError for weights that are not finite."""
    if plan.trace and not journal.of(VISION):
        from ayaedge_export.vision.trace import check_memory

        check_memory(plan.checkpoint.config.vision)
    if journal.pieces:  # they were written after this check
        advance(plan.check_bytes, "checked before")
    else:
        check_finite(plan.checkpoint, threads or usable_threads(), advance)


def _formats(plan: ExportPlan, decoder: DecoderEffort | PreparedDecoder) -> Formats:
    adjustments = (*plan.recipe.adjustments, *decoder.adjustments)
    return Formats(plan.vision, plan.recipe.format, adjustments, plan.vision_for_gpus)


def _fingerprint(plan: ExportPlan, effort: DecoderEffort) -> str:
    """Everything that decides about the bytes of a bundle, hashed; files of checkpoints by size and time."""
    checkpoint = plan.checkpoint
    facts = {
        "writers": describe_writers(),
        "sources": [_files(weights) for weights in checkpoint.sources],
        **merge_facts(checkpoint),
        "license": checkpoint.license,
        "formats": asdict(_formats(plan, effort)),
        **effort.facts(),
        "logit_scale": checkpoint.config.text.logit_scale,
        "trace": plan.trace,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _files(weights: Weights) -> tuple[str, dict[str, tuple[int, int]]]:
    """The directory that weights lie in, and its files by size and time."""
    settings = (path for form in ("*.json", "*.jinja") for path in weights.directory.glob(form))
    shards = {entry.file for entry in weights.tensors.entries.values()}
    stats = {path.name: path.stat() for path in sorted({*settings, *shards})}
    found = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}
    return str(weights.directory.resolve()), found


@contextmanager
def _explained(plan: ExportPlan, *, resume: bool) -> Iterator[None]:
    """What the system refuses, as an ExportError that says what is left."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        what = f"{plan.target} could not be written"
        for weights in plan.checkpoint.sources:
            if error.filename and Path(str(error.filename)).parent == weights.directory:
                what = f"the checkpoint {weights.directory} could not be read"
        raise ExportError(f"{what}: {reason}; {what_is_left(plan.target, resume=resume)}") from error


@contextmanager
def _faults_of(checkpoint: Checkpoint) -> Iterator[None]:
    """A weight that does not fit its format, as a CheckpointError; a budget that cannot be kept stays what it is."""
    try:
        yield
    except InvalidOptionError:
        raise
    except ValueError as error:
        raise CheckpointError(f"the checkpoint {checkpoint.directory}: {error}") from error


def _ignore(_count: int, _what: str) -> None:
    pass
