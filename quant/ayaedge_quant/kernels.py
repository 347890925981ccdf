"""Our native kernels, bound with ctypes; the only file that knows the library's functions."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant.kl_divergence import KlDivergence, check_pair

_SUFFIX = {"win32": ".dll"}.get(sys.platform, ".so")  # CMake names a MODULE library .so on macOS too


def kl_divergence(
    reference: NDArray[np.float32], candidate: NDArray[np.float32], *, threads: int = 1
) -> KlDivergence:
    """Native form of `ayaedge_quant.kl_divergence.kl_divergence`; rows are shared among `threads` threads."""
    check_pair(reference, candidate)
    p = np.ascontiguousarray(reference, np.float32)
    q = np.ascontiguousarray(candidate, np.float32)
    rows, columns = p.shape
    kl, same_top = np.empty(rows, np.float64), np.empty(rows, np.uint8)
    status = _library().ayaedge_divergence(
        p.ctypes.data, q.ctypes.data, rows, columns, threads,
        kl.ctypes.data, same_top.ctypes.data,
    )  # fmt: skip
    if status != 0:
        raise ValueError(f"the kernel refused logits of shape {p.shape} with {threads} threads")
    return KlDivergence(kl, same_top.astype(np.bool_))


WIDEST = 2
"""Instruction sets of the encoders and the sweep: 0 any processor, 1 AVX2, 2 AVX-512; a processor without one takes
the next. -1 is any processor, without vectors: their twin in the tests."""


def encode(
    weights: NDArray[np.float32],
    kind: int,
    row_bytes: int,
    importance: NDArray[np.float32] | None = None,
    *,
    widest: int = WIDEST,
) -> NDArray[np.uint8]:
    """C-ordered weights (rows, columns) as blocks of ggml's type number `kind`, bytes (rows, row_bytes).

    `importance` (columns,) weighs the columns. All zeros for a type without encoder. Releases the GIL.
    """
    rows, columns = weights.shape
    blocks = np.zeros((rows, row_bytes), np.uint8)
    _library().ayaedge_encode(
        kind, weights.ctypes.data, blocks.ctypes.data, rows, columns,
        None if importance is None else importance.ctypes.data, widest,
    )  # fmt: skip
    return blocks


_SUPER_BLOCK = 256
_BLOCK_BYTES = {12: 144, 13: 176, 14: 210, 23: 136}
"""Of ggml's type numbers that the sweep knows; `ayaedge_quant.number_formats` has their names."""

_SWEEP_ERRORS = {
    2: "the order leaves a super-block or is no permutation",
    4: "a corrected weight is not finite or too large for the type",
}


def sweep(
    weights: NDArray[np.float32],
    kind: int,
    row_bytes: int,
    feedback: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
    *,
    order: NDArray[np.int32] | None = None,
    grid: NDArray[np.uint8] | None = None,
    out: NDArray[np.uint8] | None = None,
    stock_encoder: int | None = None,
    threads: int = 1,
    widest: int = WIDEST,
) -> NDArray[np.uint8]:
    """Native form of `ayaedge_quant.gptq_sweep.sweep` for ggml's type number `kind`, blocks (rows, row_bytes).

    Rows of weights, feedback and `out` may be parts of longer ones, so that a span of a matrix is swept where it is;
    `out` is where the blocks go, and is returned. The grid is searched by our encoder, or by a function like
    `ggml_quantize_chunk` at the address `stock_encoder`. Rows are shared among `threads` threads; releases the GIL.
    Raises ValueError for what does not fit, and if a corrected weight is too large for the type.
    """
    rows, columns = weights.shape
    blocks = np.empty((rows, row_bytes), np.uint8) if out is None else out
    _check_rows("weights", weights, np.float32, (rows, columns))
    _check_rows("feedback", feedback, np.float32, (columns, columns))
    _check_rows("blocks", blocks, np.uint8, (rows, row_bytes))
    for name, of_columns, kind_of in (("importance", importance, np.float32), ("order", order, np.int32)):
        if of_columns is not None:
            _check_rows(name, of_columns, kind_of, (columns,))
    if columns % _SUPER_BLOCK or row_bytes != columns // _SUPER_BLOCK * _BLOCK_BYTES.get(kind, -1):
        raise ValueError(f"{columns} columns of type {kind} are not {row_bytes} bytes of whole blocks")
    if grid is not None:
        _check_rows("grid", grid, np.uint8, (rows, row_bytes))
        blocks[...] = grid
    status = _library().ayaedge_sweep(
        kind, weights.ctypes.data, rows, weights.strides[0] // 4, columns,
        feedback.ctypes.data, feedback.strides[0] // 4, _address(importance), _address(order),
        grid is None, stock_encoder, blocks.ctypes.data, blocks.strides[0],
        threads, widest,
    )  # fmt: skip
    if status == 3:
        raise MemoryError("no memory for the column sweep")
    if status != 0:
        raise ValueError(_SWEEP_ERRORS.get(status, f"the kernel refused a sweep with {threads} threads"))
    return blocks


def _check_rows(
    name: str, values: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]
) -> None:
    """ValueError unless `values` have this type and shape, and each row lies in one piece."""
    if values.dtype != dtype or values.shape != shape:
        raise ValueError(
            f"the {name} must be {np.dtype(dtype)} of shape {shape}, not {values.dtype} of {values.shape}"
        )
    if values.size and (values.strides[-1] != values.itemsize or values.strides[0] % values.itemsize):
        raise ValueError(f"the rows of the {name} must each lie in one piece")


def _address(values: NDArray[np.generic] | None) -> int | None:
    return None if values is None else values.ctypes.data


def library_path() -> Path:
    """Where the compiled kernels are: next to this file, or where an editable install put them."""
    name = f"libayaedge_kernels{_SUFFIX}"
    own = Path(__file__).with_name(name)
    if own.exists():
        return own
    try:
        installed = Path(str(metadata.distribution("ayaedge").locate_file(f"ayaedge_quant/{name}")))
    except metadata.PackageNotFoundError:
        installed = own
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
    library.ayaedge_sweep.argtypes = [
        ctypes.c_int32, pointer, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, pointer, ctypes.c_int64,
        pointer, pointer, ctypes.c_int32, pointer, pointer, ctypes.c_int64, ctypes.c_int32, ctypes.c_int32,
    ]  # fmt: skip
    library.ayaedge_sweep.restype = ctypes.c_int32
    return library
