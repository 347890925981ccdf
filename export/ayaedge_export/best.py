"""An export with the effort `best`: what is measured before a type is chosen, and what then rounds the weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from ayaedge_export.calibration import calibration_passages
from ayaedge_export.calibration_text import CalibrationText
from ayaedge_export.checkpoint import Checkpoint
from ayaedge_export.countdown import Countdown
from ayaedge_export.decoder_gguf import Advance, header_bytes
from ayaedge_export.effort import (
    MAX_TOKENS,
    PROBE_TOKENS,
    SURVEY_TOKENS,
    Allocation,
    Budget,
    check_budget,
    choose_types,
)
from ayaedge_export.error_feedback import FeedbackOptions, Rounder
from ayaedge_export.journal import Journal
from ayaedge_export.states import Arrays, StateFile, Values
from ayaedge_export.survey import OnStep, Passages, Survey, survey
from ayaedge_quant.covariance import Covariance
from ayaedge_quant.ggml import GgmlType
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

    @property
    def adjustments(self) -> tuple[str, ...]:
        """For the manifest: how many tensors got another type than the format has for them."""
        counts = Counter(kind.name.lower() for kind in self.allocation.kinds.values())
        chosen = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        return (f"types chosen by measurement ({chosen or 'as the format has them'})",)

    @property
    def figures(self) -> dict[str, float]:
        """For the manifest: what the measured losses add up to."""
        return {
            "best, predicted KL divergence of the chosen types (nats)": self.allocation.predicted,
            "best, predicted KL divergence of the format's own types (nats)": self.allocation.fixed_rule,
        }


def prepare_best(
    checkpoint: Checkpoint,
    journal: Journal,
    recipe: Recipe,
    budget: Budget,
    text: CalibrationText,
    options: FeedbackOptions,
    *,
    max_tokens: int = MAX_TOKENS,
    threads: int | None = None,
    advance: Advance,
) -> BestDecoder:
    """Measure, choose types, and prepare the rounding; what is measured is kept until the bundle is complete.

    Raises InvalidOptionError for a budget that cannot be kept.
    """
    text_config, size = checkpoint.config.text, header_bytes(checkpoint, journal.directory, recipe)
    check_budget(text_config, recipe, budget, header_bytes=size)
    advance(0, "pictures to calibrate on")
    passages, measured, probes = calibration_passages(
        checkpoint, text, max_tokens=max_tokens, survey_tokens=min(SURVEY_TOKENS, max_tokens), probe_tokens=PROBE_TOKENS
    )  # fmt: skip
    layers = text_config.num_layers
    countdown = Countdown((1 + _ROUNDING) * layers + 1)

    def surveyed(done: int, of: int) -> None:
        advance(0, countdown.label(f"surveyed {done}/{of}", done))

    def rounded(done: int, of: int) -> None:
        advance(0, countdown.label(f"rounded {done}/{of}", layers + 1 + _ROUNDING * done))

    found = _surveyed(checkpoint, journal, measured, probes, options.block, threads, surveyed)
    allocation = choose_types(found, text_config, recipe, budget, header_bytes=size)
    rounder = Rounder(
        checkpoint, passages, found.head, options,
        state=StateFile(journal.directory / _ROUNDED, journal.fingerprint), threads=threads,
        on_step=rounded,
    )  # fmt: skip
    return BestDecoder(replace(recipe, chosen=allocation.kinds), allocation, rounder)


def _surveyed(
    checkpoint: Checkpoint,
    journal: Journal,
    text: Passages,
    probes: Passages,
    block: int,
    threads: int | None,
    on_step: OnStep,
) -> Survey:
    file = StateFile(journal.directory / _SURVEY, journal.fingerprint)
    known = file.read() if journal.of(_SURVEY) else None
    if known:
        return _from_state(*known)
    state = StateFile(journal.directory / _SURVEYED, journal.fingerprint)
    found = survey(checkpoint, text, probes, block=block, threads=threads, state=state, on_step=on_step)
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
