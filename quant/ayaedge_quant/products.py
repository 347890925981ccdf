"""Large products of float32 matrices: on a GPU where PyTorch is installed and has one, in numpy otherwise.

Nothing here needs PyTorch. Matrices stay in main memory, and go to the GPU and back for each product; so only those are
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

logger = logging.getLogger("ayaedge.products")

FloatArray = NDArray[np.float32]

_WORTH_SENDING = 128
"""Multiplications for each number that goes there or comes back: where a bus of 10 GB/s breaks even with a processor of
600 GFLOP/s."""
_PART_BYTES = 2**28
"""Of rows that are on the GPU at a time, beside their products."""


def multiply(x: FloatArray, weights: FloatArray, out: FloatArray | None = None) -> FloatArray:
    """The product of x (..., n) and weights (n, m): (..., m), in the C-ordered `out` if it is given."""
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

    def _multiply_there(self, rows: FloatArray, weights: FloatArray, products: FloatArray) -> None:
        import torch

        with torch.inference_mode():
            there = torch.from_numpy(weights).to(self.device)
            step = max(1, _PART_BYTES // (4 * rows.shape[1]))
            for start in range(0, len(rows), step):
                part = torch.from_numpy(rows[start : start + step]).to(self.device)
                torch.from_numpy(products[start : start + step]).copy_(part @ there)


def is_worth_sending(rows: int, inner: int, columns: int) -> bool:
    """Whether a product (rows, inner) @ (inner, columns) takes longer than the way to a GPU."""
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
    if hasattr(torch, "accelerator"):
        return torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cuda") if torch.cuda.is_available() else None


@cache
def _multiplier() -> Multiplier:
    device = find_gpu()
    if device is not None:
        logger.info("large products are computed on PyTorch's %s", device)
    return Multiplier(device)
