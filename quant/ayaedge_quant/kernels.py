"""Our native kernels, bound with ctypes; the only file that knows the library's functions."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant.divergence import Divergence, check_pair

_SUFFIX = {"win32": ".dll"}.get(sys.platform, ".so")  # CMake names a MODULE library .so on macOS too


def divergence(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], *, threads: int | None = None
) -> Divergence:
    """Native form of `ayaedge_quant.divergence.divergence`; rows are shared among `threads` threads."""
    check_pair(reference, candidate)
    p = np.ascontiguousarray(reference, np.float32)
    q = np.ascontiguousarray(candidate, np.float32)
    rows, columns = p.shape
    kl, same_top = np.empty(rows, np.float64), np.empty(rows, np.uint8)
    status = _library().ayaedge_divergence(
        p.ctypes.data, q.ctypes.data, rows, columns, threads or os.cpu_count() or 1,
        kl.ctypes.data, same_top.ctypes.data,
    )  # fmt: skip
    if status != 0:
        raise ValueError(f"the kernel refused logits of shape {p.shape} with {threads} threads")
    return Divergence(kl, same_top.astype(np.bool_))


WIDEST = 2
"""Instruction sets of the encoders: 0 any processor, 1 AVX2, 2 AVX-512. A processor without one takes the next."""


def encode(
    weights: NDArray[np.float32],
    kind: int,
    row_bytes: int,
    importance: NDArray[np.float32] | None = None,
    *,
    widest: int = WIDEST,
) -> NDArray[np.uint8]:
    """C-ordered weights (rows, columns) as blocks of ggml's type number `kind`, bytes (rows, row_bytes).

    `importance` (columns,) weighs the columns. All zeros where this build has no encoders. Releases the GIL.
    """
    rows, columns = weights.shape
    blocks = np.zeros((rows, row_bytes), np.uint8)
    _library().ayaedge_encode(
        kind, weights.ctypes.data, blocks.ctypes.data, rows, columns,
        None if importance is None else importance.ctypes.data, widest,
    )  # fmt: skip
    return blocks


def library_path() -> Path:
    """Where the compiled kernels are: beside this file, or where an editable install put them."""
    name = f"libayaedge_kernels{_SUFFIX}"
    beside = Path(__file__).with_name(name)
    if beside.exists():
        return beside
    try:
        installed = Path(str(metadata.distribution("ayaedge").locate_file(f"ayaedge_quant/{name}")))
    except metadata.PackageNotFoundError:
        installed = beside
    if not installed.exists():
        raise FileNotFoundError(
            f"{name} was not built; `pip install .` in the source directory (or `pip install ayaedge`) builds it"
        )
    return installed


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    pointer = ctypes.c_void_p
    library.ayaedge_divergence.argtypes = [
        pointer, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int32, pointer, pointer,
    ]  # fmt: skip
    library.ayaedge_divergence.restype = ctypes.c_int
    library.ayaedge_encode.argtypes = [
        ctypes.c_int32, pointer, pointer, ctypes.c_int64, ctypes.c_int64, pointer, ctypes.c_int32,
    ]  # fmt: skip
    library.ayaedge_encode.restype = ctypes.c_int64
    return library
