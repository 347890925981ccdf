"""How much work an export puts into the decoder's 4 bits, what that takes, and which types it then chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant.recipes import DecoderFormat

FloatArray = NDArray[np.float32]

Effort = Literal["fast", "calibrated", "best"]
"""Weights as they are; weighed by an importance matrix; error feedback and types chosen for the tensors."""
EFFORTS: tuple[Effort, ...] = get_args(Effort)

MAX_TOKENS = 12288
"""Positions that are calibrated on. More change an importance matrix little: llama.cpp's table in tools/perplexity
shows under 3 % between 1 k and 10 M."""
BEST_FORMATS: tuple[DecoderFormat, ...] = ("q4_k_m", "q5_k_m", "q6_k")
"""Formats whose bytes `best` can spend otherwise."""
SURVEY_TOKENS = 4096
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

    @property
    def has_size(self) -> bool:
        """Whether it is the user's own."""
        return self.nbytes is not None or self.bits_per_weight is not None


def effort_faults(
    effort: Effort | None, fmt: DecoderFormat, budget: Budget, *, importance: bool, text: bool
) -> list[str]:
    """What in these options contradicts each other, as sentences."""
    faults = []
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
