"""An export with the effort `best`: what is measured before a type is chosen, and what then rounds the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ayaedge.errors import ExportError
from ayaedge.hardware.machine import usable_threads
from ayaedge_export.best.allocation import check_budget, choose_types
from ayaedge_export.best.passages import BestPassages, calibration_passages
from ayaedge_export.best.rounding import Rounder
from ayaedge_export.best.sensitivity import OnStep, Sensitivity, measure_sensitivity
from ayaedge_export.calibration.text import CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.decoder.gguf_writer import Advance
from ayaedge_export.effort import (
    PROBE_TOKENS,
    SENSITIVITY_TOKENS,
    Budget,
    Effort,
    ExportRun,
    GptqOptions,
    PreparedDecoder,
)
from ayaedge_export.plan import ExportPlan
from ayaedge_export.resume.eta import Eta
from ayaedge_export.resume.journal import Journal
from ayaedge_export.resume.state_file import Arrays, StateFile, Values
from ayaedge_quant import kernels
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.number_formats import GgmlType

_SENSITIVITY, _MEASURED, _ROUNDED = "../survey.npz", "../surveyed.npz", "../rounded.npz"
"""Next to the bundle's files: the result, and how far two computations have come."""
_ROUNDING = 1.2
"""Work of rounding a layer where measuring one is 1, measured at the 8B's width."""


@dataclass(frozen=True)
class MeasuredTypes:
    """The effort `best`: types chosen by measurement within `budget`, and weights rounded by GPTQ."""

    effort: ClassVar[Effort] = "best"
    text: CalibrationText
    budget: Budget
    gptq: GptqOptions
    state_bytes: int
    """Two streams of hidden states, and once more while they are replaced."""

    @classmethod
    def of(cls, plan: ExportPlan, text: CalibrationText, budget: Budget, gptq: GptqOptions) -> MeasuredTypes:
        """Raise InvalidOptionError for a budget that cannot be kept, and ExportError without the native kernels."""
        try:
            kernels.library_path()
        except FileNotFoundError as error:
            raise ExportError(f"the effort best needs the native kernels: {error}") from None
        check_budget(plan, budget)
        config = plan.checkpoint.config.text
        settled = gptq.settled(max(config.hidden_size, config.intermediate_size))
        return cls(text, budget, settled, 2 * 2 * 4 * gptq.tokens * config.hidden_size)

    @property
    def adjustments(self) -> tuple[str, ...]:
        """What is measured on."""
        return (f"importance from {self.text.name}",)

    def facts(self) -> dict[str, object]:
        """See `DecoderEffort.facts`."""
        settings = (self.effort, asdict(self.budget), asdict(self.gptq))
        return {"importance": self.text.digest(), "effort": settings}

    def prepare(self, run: ExportRun) -> PreparedDecoder:
        """Measure, choose types, and prepare the rounding; InvalidOptionError for a budget that cannot be kept."""
        plan, journal, threads = run.plan, run.journal, run.threads or usable_threads()
        run.advance(0, "images to calibrate on")
        passages = calibration_passages(
            plan.checkpoint, self.text, max_tokens=self.gptq.tokens,
            sensitivity_tokens=min(SENSITIVITY_TOKENS, self.gptq.tokens), probe_tokens=PROBE_TOKENS,
        )  # fmt: skip
        steps = _Steps(plan.checkpoint.config.text.num_layers, run.advance)
        found = _measured(plan.checkpoint, journal, passages, threads, steps.measured)
        allocation = choose_types(found, plan, self.budget)
        rounder = Rounder(
            plan.checkpoint, passages.rounding, found.head, self.gptq,
            state=StateFile(journal.directory / _ROUNDED, journal.fingerprint), threads=threads,
            on_step=steps.rounded,
        )  # fmt: skip
        chosen = list_types(allocation.kinds) or "as the format has them"
        return PreparedDecoder(
            plan.with_types(allocation.kinds),
            (f"error feedback from {passages.text.name}", f"types chosen by measurement ({chosen})"),
            source=rounder,
            figures={
                "best, predicted KL divergence of the chosen types (nats)": allocation.predicted,
                "best, predicted KL divergence of the format's own types (nats)": allocation.fixed_rule,
            },
        )


class _Steps:
    """Names the layers that were measured and rounded, with the time left."""

    def __init__(self, layers: int, advance: Advance) -> None:
        self._layers, self._advance = layers, advance
        self._eta = Eta((1 + _ROUNDING) * layers + 1)

    def measured(self, done: int, of: int) -> None:
        """So many layers, and the head, were measured."""
        self._advance(0, self._eta.label(f"sensitivity {done}/{of}", done))

    def rounded(self, done: int, of: int) -> None:
        """So many layers were rounded."""
        finished = self._layers + 1 + _ROUNDING * done
        self._advance(0, self._eta.label(f"rounded {done}/{of}", finished))


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


def _measured(
    checkpoint: Checkpoint,
    journal: Journal,
    passages: BestPassages,
    threads: int,
    on_step: OnStep,
) -> Sensitivity:
    file = StateFile(journal.directory / _SENSITIVITY, journal.fingerprint)
    known = file.read() if journal.of(_SENSITIVITY) else None
    if known:
        return _from_state(*known)
    state = StateFile(journal.directory / _MEASURED, journal.fingerprint)
    found = measure_sensitivity(
        checkpoint, passages.sensitivity, passages.probes, threads=threads, state=state, on_step=on_step
    )
    file.write(*_to_state(found))
    journal.forget(_SENSITIVITY)
    journal.add_file(_SENSITIVITY)
    state.path.unlink(missing_ok=True)
    return found


def _to_state(found: Sensitivity) -> tuple[Values, Arrays]:
    losses = {name: {kind.name: loss for kind, loss in of.items()} for name, of in found.losses.items()}
    values = {"losses": losses, "sensitivities": dict(found.sensitivities)}
    return values, found.head.to_arrays()


def _from_state(values: Values, arrays: dict[str, Any]) -> Sensitivity:
    losses = {
        name: {GgmlType[kind]: loss for kind, loss in of.items()} for name, of in values["losses"].items()
    }
    return Sensitivity(losses, values["sensitivities"], Hessian.from_arrays(arrays))
