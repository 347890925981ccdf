"""How much work an export puts into the decoder's 4 bits, and what each such effort must be able to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from ayaedge.checks import check_options, instance, make_plain
from ayaedge_export.decoder.gguf_writer import Advance, BlockSource
from ayaedge_export.plan import ExportPlan
from ayaedge_export.resume.journal import Journal
from ayaedge_quant.blocks import SUPER_BLOCK
from ayaedge_quant.gptq import TARGET_DAMPING
from ayaedge_quant.hessian import DAMPING
from ayaedge_quant.imatrix import ImportanceMatrix
from ayaedge_quant.recipes import DecoderFormat

FloatArray = NDArray[np.float32]

Effort = Literal["fast", "calibrated", "best"]
"""Weights as they are; weighed by an importance matrix; types chosen for the tensors, and rounded by GPTQ."""
EFFORTS: tuple[Effort, ...] = get_args(Effort)

MAX_TOKENS = 12288
"""Positions that are calibrated on. More change an importance matrix little: llama.cpp's table in tools/perplexity
shows under 3 % between 1 k and 10 M."""
BEST_FORMATS: tuple[DecoderFormat, ...] = ("q4_k_m", "q5_k_m", "q6_k")
"""Formats whose bytes `best` can spend otherwise."""
SENSITIVITY_TOKENS = 4096
"""Positions that losses are measured on."""
PROBE_TOKENS = 460
"""Positions, of all languages together, that the groups' sensitivities are measured on."""


@dataclass(frozen=True)
class Budget:
    """How large the decoder may become: bytes of its file, or bits of all its weights; the format's if neither."""

    nbytes: int | None = None
    bits_per_weight: float | None = None
    choose_types: bool = True
    """Whether tensors may get other types than the format has for them; without it there is no size to aim at."""

    def __post_init__(self) -> None:
        make_plain(self)
        check_options(instance("choose_types", self.choose_types, bool))

    @property
    def has_size(self) -> bool:
        """Whether it is the user's own."""
        return self.nbytes is not None or self.bits_per_weight is not None


BLOCK = 1024
"""Columns that compensate each other. The builtin text is 8,642 positions with the 8B's tokenizer, 8 for each column;
more columns gave less KL divergence still with 6 for each (docs/quantization.md), and take longer."""


@dataclass(frozen=True)
class GptqOptions:
    """How `best` rounds tensors."""

    block: int = BLOCK
    """Columns within which errors are compensated, a multiple of 256, or 0 for all; the head's are within 256."""
    damping: float = DAMPING
    target_damping: float = TARGET_DAMPING
    rounded_inputs: bool = True
    """Whether Hessians are those of the rounded model's activations, and matmuls aim at the exact model's."""
    tokens: int = MAX_TOKENS
    """Most positions of text and images that are calibrated on."""

    def __post_init__(self) -> None:
        make_plain(self)
        check_options(instance("rounded_inputs", self.rounded_inputs, bool))

    def settled(self, widest: int) -> GptqOptions:
        """The same for a decoder whose widest linear has so many columns."""
        return self if self.block else replace(self, block=-(-widest // SUPER_BLOCK) * SUPER_BLOCK)


@dataclass(frozen=True)
class PreparedDecoder:
    """What a decoder is written from, once an effort has looked at it."""

    plan: ExportPlan
    adjustments: tuple[str, ...] = ()
    """For the manifest: what was done beyond the named format."""
    importance: ImportanceMatrix | None = None
    source: BlockSource | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    """For the manifest: what is known of the result."""


@dataclass(frozen=True)
class ExportRun:
    """One try at a plan: what is finished of it, and how the rest is computed."""

    plan: ExportPlan
    journal: Journal
    threads: int | None
    advance: Advance


class DecoderEffort(Protocol):
    """One way to find the decoder's bits, with its options."""

    @property
    def effort(self) -> Effort:
        """Its name."""
        ...

    @property
    def adjustments(self) -> tuple[str, ...]:
        """What is looked at, as a manifest says it."""
        ...

    @property
    def state_bytes(self) -> int:
        """Disk for what is kept until the bundle is complete."""
        ...

    def facts(self) -> dict[str, object]:
        """All of the options that decides about the bytes of the file, as JSON."""
        ...

    def prepare(self, run: ExportRun) -> PreparedDecoder:
        """Do what must be done before the decoder is written, but for what the journal has of it."""
        ...


@dataclass(frozen=True)
class StoredWeights:
    """The effort `fast`: weights as the checkpoint has them, whose columns a given importance matrix may weigh."""

    effort: ClassVar[Effort] = "fast"
    state_bytes: ClassVar[int] = 0
    importance: ImportanceMatrix | None = None

    @property
    def adjustments(self) -> tuple[str, ...]:
        """Where the importance matrix is from."""
        names = (self.importance.datasets or ("a file",)) if self.importance else ()
        return tuple(f"importance from {name}" for name in names)

    def facts(self) -> dict[str, object]:
        """See `DecoderEffort.facts`."""
        return {"importance": self.importance.digest() if self.importance else None, "effort": None}

    def prepare(self, run: ExportRun) -> PreparedDecoder:
        """The plan and the matrix as they are."""
        return PreparedDecoder(run.plan, self.adjustments, self.importance)


def effort_faults(
    effort: Effort | None,
    fmt: DecoderFormat,
    budget: Budget,
    gptq: GptqOptions | None = None,
    *,
    importance: bool,
    text: bool,
) -> list[str]:
    """What in these options contradicts each other, as sentences."""
    faults = []
    if importance and text:
        faults.append("importance and calibrate exclude each other")
    if gptq and effort != "best":
        faults.append("only the effort best has columns that compensate each other")
    if gptq and (gptq.block < 0 or gptq.block % SUPER_BLOCK):
        faults.append(
            f"columns that compensate each other come in multiples of {SUPER_BLOCK}, not {gptq.block}"
        )
    if effort is not None and effort not in EFFORTS:
        faults.append(f"the effort must be one of {', '.join(EFFORTS)}, not {effort!r}")
    if effort == "fast" and (importance or text):
        faults.append("the effort fast does not look at text: leave it out, or say calibrated or best")
    if effort == "best" and importance:
        faults.append("the effort best measures more than an importance matrix has: leave the matrix out")
    if effort == "best" and fmt not in BEST_FORMATS:
        faults.append(f"the effort best is for {', '.join(BEST_FORMATS)}, not {fmt}")
    if budget.nbytes is not None and budget.bits_per_weight is not None:
        faults.append("give a size or bits per weight, not both")
    if budget != Budget() and effort != "best":
        faults.append("only the effort best can aim at a size or at bits per weight")
    wishes = [wish for wish in (budget.nbytes, budget.bits_per_weight) if wish is not None]
    if not all(math.isfinite(wish) and wish > 0 for wish in wishes):
        faults.append("the size and the bits per weight must be positive")
    return faults
