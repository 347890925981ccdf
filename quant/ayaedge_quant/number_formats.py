"""Weights to ggml's blocks: its own encoders, reached by ctypes in the library that llama-cpp-python ships, and ours.

Our encoders of Q4_K, Q5_K and Q6_K (`quant/kernels/encode_lanes.cpp`) do the same arithmetic many times faster. Before
the first use of each it is compared with the installed ggml, which is used instead if one byte differs: where ggml's
compiler fused multiplications and additions, where a new version searches in another way, and on Windows, where ours
are not built.

Importing this module loads nothing; the first call loads ggml's base library alone, not llama.cpp.
"""

from __future__ import annotations

import ctypes
import sys
from enum import IntEnum
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant import kernels


class GgmlType(IntEnum):
    """The storage types that we write, with ggml's numbers for them."""

    F32 = 0
    F16 = 1
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_XS = 23

    @property
    def block_size(self) -> int:
        """Weights that share one block; a row must hold a whole number of blocks."""
        return _LAYOUT[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _LAYOUT[self][1]

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights; ValueError unless it is a whole number of blocks."""
        if columns % self.block_size:
            raise ValueError(f"{self.name} needs rows of a multiple of {self.block_size}, not {columns}")
        return columns // self.block_size * self.block_bytes


_LAYOUT = {
    GgmlType.F32: (1, 4),
    GgmlType.F16: (1, 2),
    GgmlType.Q5_0: (32, 22),
    GgmlType.Q5_1: (32, 24),
    GgmlType.Q8_0: (32, 34),
    GgmlType.Q4_K: (256, 144),
    GgmlType.Q5_K: (256, 176),
    GgmlType.Q6_K: (256, 210),
    GgmlType.IQ4_XS: (256, 136),
}

_FAST = frozenset({GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K})
"""Types that our own encoders know."""

_HALF = 65504.0  # the largest float16: weights themselves, or the scales of blocks
_LARGEST = {
    GgmlType.F16: _HALF, GgmlType.Q5_0: 16 * _HALF, GgmlType.Q5_1: _HALF, GgmlType.Q8_0: 127 * _HALF,
    GgmlType.Q4_K: _HALF, GgmlType.Q5_K: _HALF, GgmlType.Q6_K: 32 * _HALF, GgmlType.IQ4_XS: _HALF,
}  # fmt: skip
"""Magnitude of a weight up to which a type surely keeps its scale within float16."""

_DECODERS = {
    kind: f"dequantize_row_{kind.name.lower().replace('_k', '_K')}"
    for kind in GgmlType if kind not in (GgmlType.F32, GgmlType.F16)
}  # fmt: skip


def encode(
    weights: NDArray[np.float32], kind: GgmlType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Weights (rows, columns) as blocks of `kind`, bytes (rows, row_bytes); releases the GIL while it works.

    `importance` (columns,) is the mean squared input of each column: the encoders then search for the scales
    with the smallest error of the matmul, not of the weights. F32, F16 and Q8_0 have nothing to search for and
    ignore it, as in llama.cpp. Raises ValueError if a row is not a whole number of blocks, or if a weight is not
    finite or an importance not finite or negative (the encoders take such a value silently and spoil its block).
    """
    rows, columns = weights.shape
    row_bytes = kind.row_bytes(columns)
    check_weights(weights, kind)
    if importance is not None:
        _check_importance(importance, columns)
    if kind in (GgmlType.F32, GgmlType.F16):
        converted = weights.astype(np.float32 if kind is GgmlType.F32 else np.float16)
        return np.ascontiguousarray(converted).view(np.uint8).reshape(rows, row_bytes)
    source = np.ascontiguousarray(weights, np.float32)
    column_weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if kind in _FAST and _kernel_agrees(kind, weighted=importance is not None):
        return kernels.encode(source, int(kind), row_bytes, column_weights)
    return stock_encode(source, kind, column_weights)


def check_weights(weights: NDArray[np.float32], kind: GgmlType) -> None:
    """Raise ValueError if a weight is not finite or too large for `kind`."""
    largest = float(np.maximum(weights.max(initial=0), -weights.min(initial=0)))
    if not np.isfinite(largest):  # NaN passes through all of these
        raise ValueError("weights that are not finite cannot be encoded")
    if kind is not GgmlType.F32 and largest > _LARGEST[kind]:
        raise ValueError(
            f"a weight of {largest:g} is too large for {kind.name}, which holds {_LARGEST[kind]:g}"
        )


def decode(blocks: NDArray[np.uint8], kind: GgmlType) -> NDArray[np.float32]:
    """Blocks (rows, row_bytes) as the weights (rows, columns) that ggml computes with."""
    data = np.ascontiguousarray(blocks)
    if kind in (GgmlType.F32, GgmlType.F16):
        return data.view(np.float32 if kind is GgmlType.F32 else np.float16).astype(np.float32)
    weights = np.empty((len(data), data.shape[1] // kind.block_bytes * kind.block_size), np.float32)
    decode_row = getattr(_library(), _DECODERS[kind])
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    decode_row(pointer(data.ctypes.data), pointer(weights.ctypes.data), count(weights.size))
    return weights


def stock_encoder(kind: GgmlType, *, weighted: bool) -> int | None:
    """Address of `ggml_quantize_chunk`, for kernels that need an encoder; None where ours gives the same bytes."""
    if kind in _FAST and _kernel_agrees(kind, weighted=weighted):
        return None
    return ctypes.cast(_library().ggml_quantize_chunk, ctypes.c_void_p).value


def stock_encode(
    weights: NDArray[np.float32], kind: GgmlType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """`encode` by ggml itself, for C-ordered weights and types with blocks; nothing is checked."""
    rows, columns = weights.shape
    blocks = np.empty((rows, kind.row_bytes(columns)), np.uint8)
    written = _library().ggml_quantize_chunk(
        int(kind), weights.ctypes.data, blocks.ctypes.data, 0, rows, columns,
        None if importance is None else importance.ctypes.data,
    )  # fmt: skip
    if written != blocks.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind.name} where {blocks.nbytes} were expected")
    return blocks


@cache
def _kernel_agrees(kind: GgmlType, *, weighted: bool) -> bool:
    """Whether our encoder gives the installed ggml's bytes on a sample with all kinds of rows."""
    rng = np.random.default_rng(0)
    sample = (0.02 * rng.standard_t(4, (24, 512))).astype(np.float32)
    sample[0] = 0  # nothing, one sign only, equal values, wide and narrow ranges next to each other
    sample[1:3] = np.abs(sample[1:3]) * np.array([[1], [-1]], np.float32)
    sample[3, :300] = 0.25
    sample[4, ::5] = 0
    sample[5:8] *= np.exp(6 * rng.standard_normal((3, 512))).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(512)).astype(np.float32) if weighted else None
    try:
        ours = kernels.encode(sample, int(kind), kind.row_bytes(512), importance)
    except (OSError, AttributeError):  # not built, or built from an older source
        return False
    return bool(np.array_equal(ours, stock_encode(sample, kind, importance)))


def _check_importance(importance: NDArray[np.float32], columns: int) -> None:
    if importance.shape != (columns,):
        raise ValueError(f"the importance must have shape ({columns},), not {importance.shape}")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("the importance of a column must be finite and not negative")


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    encode_rows = library.ggml_quantize_chunk
    encode_rows.restype = ctypes.c_size_t
    encode_rows.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    library.ggml_quantize_init.argtypes = [ctypes.c_int]
    for kind in GgmlType:  # tables of a type are made on first use, which is not safe from several threads
        library.ggml_quantize_init(int(kind))
    return library


def library_path() -> Path:
    """Where ggml's base library is; FileNotFoundError if llama-cpp-python is not installed.

    Of several files with the same library it is the one that llama.cpp asks for, so that a process has one copy.
    """
    names = {
        "win32": ["ggml-base.dll", "libggml-base.dll"],
        "darwin": ["libggml-base.[0-9].dylib", "libggml-base.dylib", "libggml-base.so"],
    }.get(sys.platform, ["libggml-base.so.[0-9]", "libggml-base.so"])
    spec = find_spec("llama_cpp")
    folders = [Path(place) / "lib" for place in (spec.submodule_search_locations or [])] if spec else []
    for folder, name in product(folders, names):
        for path in folder.glob(name):
            return path
    raise FileNotFoundError(
        f"ggml's library ({names[-1]}) was not found; `pip install llama-cpp-python` brings it"
    )
