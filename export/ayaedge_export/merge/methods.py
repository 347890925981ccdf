"""How the weights of two or three models become one model's, for a part of a tensor at a time.

Knows nothing of files. Written v for the vision-language model's weights, b for the base's, a for the ancestor's and w
for the weight of the vision-language model.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

MergeMethod = Literal["linear", "slerp", "task-arithmetic"]
"""b + w (v - b); the same along the arc between both; b + w (v - a)."""
METHODS: tuple[MergeMethod, ...] = get_args(MergeMethod)

PARALLEL = 0.9995
"""Cosine between two tensors from which the arc is taken for a straight line, as in mergekit."""
_PIECE = 1 << 13
"""Values whose products are summed at once: copies stay in the cache, and OpenBLAS takes one thread up to 10,000."""


def add_difference(v: FloatArray, b: FloatArray, a: FloatArray, w: float) -> FloatArray:
    """Return b + w (v - a), computed in float32 in the place of v.

    With a = b that is the weighted mean w v + (1 - w) b, written so that equal weights stay what they are. Otherwise it
    is task arithmetic (Ilharco et al. 2023, arXiv:2212.04089): v - a is the task vector, w its scale.
    """
    v -= a
    v *= np.float32(w)
    v += b
    return v


def mix(v: FloatArray, b: FloatArray, of_v: float, of_b: float) -> FloatArray:
    """Return of_v v + of_b b, computed in float32 in the places of both."""
    v *= np.float32(of_v)
    b *= np.float32(of_b)
    v += b
    return v


def arc_factors(dot: float, square_v: float, square_b: float, w: float) -> tuple[float, float] | None:
    """The factors of v and b on the arc between them (Shoemake 1985, Animating rotation with quaternion curves).

    With the angle t between both they are sin(w t) / sin(t) and sin((1 - w) t) / sin(t). `dot` is the sum of v b,
    `square_v` and `square_b` are those of v v and b b. None where they are (nearly) parallel, opposite or zero: a
    straight line is meant.
    """
    if not square_v or not square_b:
        return None
    cosine = dot / math.sqrt(square_v) / math.sqrt(square_b)
    if abs(cosine) > PARALLEL:
        return None
    angle = math.acos(cosine)
    return math.sin(w * angle) / math.sin(angle), math.sin((1 - w) * angle) / math.sin(angle)


def products(v: FloatArray, b: FloatArray) -> NDArray[np.float64]:
    """The sums of v b, v v and b b over all values, in float64."""
    sums = np.zeros(3)
    flat_v, flat_b = v.reshape(-1), b.reshape(-1)
    for start in range(0, len(flat_v), _PIECE):
        x = flat_v[start : start + _PIECE].astype(np.float64)
        y = flat_b[start : start + _PIECE].astype(np.float64)
        sums += (x @ y, x @ x, y @ y)
    return sums
