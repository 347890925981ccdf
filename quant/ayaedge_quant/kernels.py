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
    return library
