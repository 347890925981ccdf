"""GPTQ's column sweep in numpy: the oracle of quant/kernels/sweep_lanes.cpp.

Columns are rounded one after another onto the grid of stock blocks; what rounding one of them does to the matmul is
compensated by those behind it. The coefficients are those of GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1):
`ayaedge_quant.hessian` derives them. Every float operation is done singly and in a fixed order, so the native sweep
gives the same codes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant.blocks import CODES, SUPER_BLOCK, Blocks, levels, nearest_codes, read_grid, with_codes
from ayaedge_quant.number_formats import GgmlType, encode

FloatArray = NDArray[np.float32]

LAZY = 128
"""Columns after whose rounding those behind them are corrected together."""


def sweep(
    weights: FloatArray,
    kind: GgmlType,
    feedback: FloatArray,
    importance: FloatArray | None = None,
    *,
    order: NDArray[np.int32] | None = None,
    grid: Blocks | None = None,
) -> Blocks:
    """Weights (rows, columns) as blocks of `kind`, bytes (rows, row_bytes), rounded by GPTQ.

    `feedback[i, j]` (columns, columns) is what an error of the i-th column in `order` takes from the j-th, j > i; the
    rest of it is not looked at. `order` permutes the columns within each super-block; by default they come as they
    are. The grid is searched anew at each super-block, by ggml's encoder with `importance` (columns,) on the columns as
    corrected so far; or it is that of the blocks `grid`.
    """
    group_size = CODES[kind].group
    rows, columns = weights.shape
    order = np.arange(columns, dtype=np.int32) if order is None else order
    left = weights.copy()
    chosen = np.empty(weights.shape, np.int8)
    blocks = np.empty((rows, kind.row_bytes(columns)), np.uint8) if grid is None else grid.copy()
    for start in range(0, columns, LAZY):
        if start % SUPER_BLOCK == 0:
            here = slice(start, start + SUPER_BLOCK)
            there = slice(kind.row_bytes(start), kind.row_bytes(here.stop))
            if grid is None:
                part = None if importance is None else importance[here]
                blocks[:, there] = encode(left[:, here], kind, part)
            step, offset = read_grid(np.ascontiguousarray(blocks[:, there]), kind)
        stop = start + LAZY
        errors = np.empty((rows, LAZY), np.float32)
        for number, column in enumerate(order[start:stop]):
            group = column % SUPER_BLOCK // group_size
            s, o = step[:, group], offset[:, group]
            with np.errstate(divide="ignore", invalid="ignore"):
                wanted = np.where(s == 0, np.float32(0), (left[:, column] + o) / s)
            code = nearest_codes(wanted, kind)
            chosen[:, column] = code
            errors[:, number] = left[:, column] - (s * levels(code, kind) - o)
            row = start + number
            near = slice(row + 1, stop)
            left[:, order[near]] -= errors[:, number, None] * feedback[row, near]
        far = np.zeros((rows, columns - stop), np.float32)
        for number in range(LAZY):
            far += errors[:, number, None] * feedback[start + number, stop:]
        left[:, order[stop:]] -= far
    return with_codes(blocks, kind, chosen)
