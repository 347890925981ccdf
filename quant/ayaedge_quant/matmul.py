"""Large matmuls in float32: on a GPU where PyTorch is installed and has one, in numpy otherwise.

Nothing here needs PyTorch. Matrices stay in main memory, and go to the GPU and back for each one; so only those are
sent whose arithmetic takes longer than the way. Sums are float32 on both, in another order (PyTorch's TensorFloat32 is
off unless a caller turns it on).
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger("ayaedge.matmul")

FloatArray = NDArray[np.float32]

_WORTH_SENDING = 128
"""Multiplications for each number that goes there or comes back: where a bus of 10 GB/s breaks even with a processor of
600 GFLOP/s."""
_SAME = 1e-5
"""Of the largest product: sums of 1,024 in float32 differ by 1e-6, TensorFloat32 by 1e-3."""
_PART_BYTES = 2**28
"""Of rows that are on the GPU at a time, next to their results."""


def multiply(x: FloatArray, weights: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """Return x @ weights for x (..., n) and weights (n, m): (..., m), in the C-ordered `out` if it is given."""
    return _multiplier()(x, weights, out)


class Multiplier:
    """`multiply` on PyTorch's device `device`, or in numpy alone."""

    def __init__(self, device: Any | None):
        self.device = device

    def __call__(self, x: FloatArray, weights: FloatArray, out: FloatArray | None = None) -> FloatArray:
        """See `multiply`."""
        if self.device is None or not is_worth_sending(x.size // x.shape[-1], *weights.shape):
            return np.matmul(x, weights, out=out)
        result = np.empty((*x.shape[:-1], weights.shape[1]), np.float32) if out is None else out
        try:
            self._multiply_there(x.reshape(-1, x.shape[-1]), weights, result.reshape(-1, weights.shape[1]))
        except RuntimeError as error:  # PyTorch's, as when there is no memory
            logger.warning("PyTorch's %s failed, the processor takes over: %s", self.device, error)
            self.device = None
            return np.matmul(x, weights, out=out)
        return result

    def _multiply_there(self, rows: FloatArray, weights: FloatArray, results: FloatArray) -> None:
        import torch

        with torch.inference_mode():
            there = torch.from_numpy(weights).to(self.device)
            step = max(1, _PART_BYTES // (4 * rows.shape[1]))
            for start in range(0, len(rows), step):
                part = torch.from_numpy(rows[start : start + step]).to(self.device)
                torch.from_numpy(results[start : start + step]).copy_(part @ there)


def is_worth_sending(rows: int, inner: int, columns: int) -> bool:
    """Whether a matmul (rows, inner) @ (inner, columns) takes longer than the way to a GPU."""
    sent = rows * inner + inner * columns + rows * columns
    return rows * inner * columns > _WORTH_SENDING * sent


def find_gpu() -> Any | None:
    """PyTorch's device (a `torch.device`) for its GPU, or None if either is missing."""
    try:
        if metadata.version("torch").endswith("+cpu"):  # which has none, and takes seconds to load
            return None
        import torch
    except (ImportError, OSError):  # OSError: a library that it needs is missing
        return None
    if hasattr(torch, "accelerator"):  # from 2.6 on
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cuda") if torch.cuda.is_available() else None


def is_exact(multiply: Multiplier) -> bool:
    """Whether a device gives numpy's matmul of a sample, in float32 and not in a smaller format."""
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((1024, 600), np.float32), rng.standard_normal((700, 1024), np.float32)
    expected = x.T @ weights.T
    return bool(np.abs(multiply(x.T, weights.T) - expected).max() < _SAME * np.abs(expected).max())


@cache
def _multiplier() -> Multiplier:
    found = Multiplier(find_gpu())
    if found.device is not None and not is_exact(found):
        logger.warning("PyTorch's %s does not multiply in float32, so the processor does", found.device)
        return Multiplier(None)
    if found.device is not None:
        logger.info("large matmuls are computed on PyTorch's %s", found.device)
    return found
