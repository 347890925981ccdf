"""An export with the effort `best`: what is measured before a type is chosen, and what then rounds the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ayaedge.errors import ExportError
from ayaedge.hardware.machine import usable_threads
from ayaedge_export.best.allocation import Allocation, check_budget, choose_types
from ayaedge_export.best.passages import BestPassages, calibration_passages
from ayaedge_export.best.rounding import FeedbackOptions, Rounder
from ayaedge_export.best.sensitivity import OnStep, Survey, survey
from ayaedge_export.calibration.text import CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.decoder.gguf_writer import Advance, header_bytes
from ayaedge_export.effort import PROBE_TOKENS, SURVEY_TOKENS, Budget
from ayaedge_export.resume.eta import Countdown
from ayaedge_export.resume.journal import Journal
from ayaedge_export.resume.state_file import Arrays, StateFile, Values
from ayaedge_quant import kernels
from ayaedge_quant.ggml import GgmlType
from ayaedge_quant.hessian import Covariance
from ayaedge_quant.recipes import Recipe

_SURVEY, _SURVEYED, _ROUNDED = "../survey.npz", "../surveyed.npz", "../rounded.npz"
"""Beside the bundle's files: the result, and how far two computations have come."""
_ROUNDING = 1.2
"""Work of rounding a layer where surveying one is 1, measured at the 8B's width."""


@dataclass(frozen=True)
class BestDecoder:
    """How the decoder is written."""

    recipe: Recipe
    allocation: Allocation
    rounder: Rounder
    text: str
    """What was calibrated on."""

    @property
    def adjustments(self) -> tuple[str, ...]:
        """For the manifest: what was done, and which tensors got another type than the format has for them."""
        chosen = list_types(self.allocation.kinds) or "as the format has them"
        return (f"error feedback from {self.text}", f"types chosen by measurement ({chosen})")

    @property
    def figures(self) -> dict[str, float]:
        """For the manifest: what the measured losses add up to."""
        return {
            "best, predicted KL divergence of the chosen types (nats)": self.allocation.predicted,
            "best, predicted KL divergence of the format's own types (nats)": self.allocation.fixed_rule,
        }


def check_possible(checkpoint: Checkpoint, recipe: Recipe, budget: Budget) -> None:
    """Before anything is done: InvalidOptionError for a budget that cannot be kept, ExportError without kernels."""
    try:
        kernels.library_path()
    except FileNotFoundError as error:
        raise ExportError(f"the effort best needs the native kernels: {error}") from None
    with TemporaryDirectory() as scratch:
        size = header_bytes(checkpoint, Path(scratch), recipe)
    check_budget(checkpoint.config.text, recipe, budget, header_bytes=size)


def state_bytes(checkpoint: Checkpoint, tokens: int) -> int:
    """Disk for what is kept for going on: two streams of hidden states, and once more while they are replaced."""
    return 2 * 2 * 4 * tokens * checkpoint.config.text.hidden_size


def prepare_best(
    checkpoint: Checkpoint,
    journal: Journal,
    recipe: Recipe,
    budget: Budget,
    text: CalibrationText,
    options: FeedbackOptions,
    *,
    threads: int | None = None,
    advance: Advance,
) -> BestDecoder:
    """Measure, choose types, and prepare the rounding; what is measured is kept until the bundle is complete.

    Raises InvalidOptionError for a budget that cannot be kept.
    """
    threads = threads or usable_threads()
    text_config, size = checkpoint.config.text, header_bytes(checkpoint, journal.directory, recipe)
    advance(0, "pictures to calibrate on")
    passages = calibration_passages(
        checkpoint, text, max_tokens=options.tokens, survey_tokens=min(SURVEY_TOKENS, options.tokens),
        probe_tokens=PROBE_TOKENS,
    )  # fmt: skip
    layers = text_config.num_layers
    countdown = Countdown((1 + _ROUNDING) * layers + 1)

    def surveyed(done: int, of: int) -> None:
        advance(0, countdown.label(f"surveyed {done}/{of}", done))

    def rounded(done: int, of: int) -> None:
        advance(0, countdown.label(f"rounded {done}/{of}", layers + 1 + _ROUNDING * done))

    found = _surveyed(checkpoint, journal, passages, threads, surveyed)
    allocation = choose_types(found, text_config, recipe, budget, header_bytes=size)
    rounder = Rounder(
        checkpoint, passages.rounding, found.head, options,
        state=StateFile(journal.directory / _ROUNDED, journal.fingerprint), threads=threads,
        on_step=rounded,
    )  # fmt: skip
    return BestDecoder(replace(recipe, chosen=allocation.kinds), allocation, rounder, passages.text.name)


def list_types(kinds: Mapping[str, GgmlType]) -> str:
    """Types of tensors, by their GGUF names, in short: `q5_k: token_embd; q6_k: attn_v in 0-2 7, ffn_down in 0`."""
    layers: dict[str, dict[str, list[int]]] = {}
    for name, kind in kinds.items():
        *layer, part = name.removeprefix("blk.").removesuffix(".weight").split(".")
        layers.setdefault(kind.name.lower(), {}).setdefault(part, []).extend(map(int, layer))
    return "; ".join(
        f"{kind}: {', '.join(part + _ranges(found) for part, found in sorted(parts.items()))}"
        for kind, parts in sorted(layers.items())
    )


def _ranges(layers: list[int]) -> str:
    """` in 0-2 7` for the layers 0, 1, 2 and 7; nothing for none."""
    runs: list[tuple[int, int]] = []
    for layer in sorted(layers):
        if runs and runs[-1][1] == layer - 1:
            runs[-1] = runs[-1][0], layer
        else:
            runs.append((layer, layer))
    names = [f"{first}-{last}" if last > first else f"{first}" for first, last in runs]
    return f" in {' '.join(names)}" if names else ""


def _surveyed(
    checkpoint: Checkpoint,
    journal: Journal,
    passages: BestPassages,
    threads: int,
    on_step: OnStep,
) -> Survey:
    file = StateFile(journal.directory / _SURVEY, journal.fingerprint)
    known = file.read() if journal.of(_SURVEY) else None
    if known:
        return _from_state(*known)
    state = StateFile(journal.directory / _SURVEYED, journal.fingerprint)
    found = survey(
        checkpoint, passages.survey, passages.probes, threads=threads, state=state, on_step=on_step
    )
    file.write(*_to_state(found))
    journal.forget(_SURVEY)
    journal.add_file(_SURVEY)
    state.path.unlink(missing_ok=True)
    return found


def _to_state(found: Survey) -> tuple[Values, Arrays]:
    losses = {name: {kind.name: loss for kind, loss in of.items()} for name, of in found.losses.items()}
    values = {"losses": losses, "sensitivities": dict(found.sensitivities)}
    return values, found.head.to_arrays()


def _from_state(values: Values, arrays: dict[str, Any]) -> Survey:
    losses = {
        name: {GgmlType[kind]: loss for kind, loss in of.items()} for name, of in values["losses"].items()
    }
    return Survey(losses, values["sensitivities"], Covariance.from_arrays(arrays))
