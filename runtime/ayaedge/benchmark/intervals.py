"""Confidence intervals of shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

_Z = 1.959964
"""Standard deviations of 95 %."""


def wilson(share: float, of: float) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share of so many rows; it makes sense for few, and where all or none hit."""
    spread = _Z * _Z / of
    middle = share + spread / 2
    half = _Z * math.sqrt((share * (1 - share) + spread / 4) / of)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def wilson_of_mean(groups: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The interval for the mean of several groups' shares, each (share, of).

    That of as many rows as vary like this mean, if groups differ by chance alone; wider than need be where they differ
    indeed.
    """
    rows = len(groups) ** 2 / sum(1 / of for _, of in groups)
    return wilson(fmean(share for share, _ in groups), rows)
