"""Random weights instead of a checkpoint's: any tensor of any checkpoint, a part at a time, from one seed.

They are spread as in trained models, so that quantizing them is not easier than the real thing: heavy tails
(Student's t), rows and columns of different size, a few columns of outliers. All values come from one pool that is
drawn once: each row is a stretch of it that begins anywhere, scaled. The scale is such that a matmul keeps the size
of its input, so a model of any depth stays finite. What a model is made of is not known here.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.checkpoint.tensors import TensorEntry
from ayaedge_export.decoder.gguf_writer import PlannedTensor
from ayaedge_quant.number_formats import GgmlType, encode

POOL = 1 << 23
DEGREES_OF_FREEDOM = 5
"""Of Student's t: kurtosis 9, and one value in a million beyond 17 standard deviations."""
ROW_SPREAD = COLUMN_SPREAD = 0.25
"""Standard deviation of the logarithm of a row's and a column's scale."""
OUTLIER_SHARE, OUTLIER_SCALE = 1 / 1024, (4.0, 12.0)
"""Share of columns that are outliers, and by how much they exceed the others."""
NORM_SPREAD = 0.3
BIAS_SCALE = 0.02
_PIECE_WEIGHTS = 1 << 18
"""Weights that are computed at once: 1 MB, which stays in the processor's cache."""
_ENCODED_WEIGHTS = 1 << 21
"""Weights of each type and width that are encoded, to take blocks from."""
_STRETCH = 256
"""Most weights that are taken from there together: a whole number of blocks of every type."""

FloatArray = NDArray[np.float32]


class RandomWeights:
    """Gives rows of tensors; the same seed, name and rows give the same values in any order and on any thread."""

    def __init__(self, seed: int):
        self.seed = seed
        rng = np.random.default_rng([seed, 0])
        pool = rng.standard_t(DEGREES_OF_FREEDOM, POOL).astype(np.float32)
        self._pool = pool / pool.std()

    def rows(self, name: str, shape: tuple[int, ...], start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of a tensor: (stop - start, *shape[1:])."""
        out = np.empty((stop - start, math.prod(shape[1:])), np.float32)
        for first, weights in self.pieces(name, shape, start, stop):
            out[first : first + len(weights)] = weights
        return out.reshape(-1, *shape[1:])

    def pieces(
        self, name: str, shape: tuple[int, ...], start: int, stop: int
    ) -> Iterator[tuple[int, FloatArray]]:
        """The same rows as matrices of few rows: where each begins, counted from `start`, and its weights."""
        columns = math.prod(shape[1:])
        key = zlib.crc32(name.encode())
        scales = column_scales(np.random.default_rng([self.seed, 1, key]), columns)
        step = max(1, _PIECE_WEIGHTS // columns)
        stretches = np.lib.stride_tricks.sliding_window_view(self._pool, columns)
        rng = np.random.default_rng([self.seed, 2, key, start])
        for first in range(0, stop - start, step):
            count = min(step, stop - start - first)
            weights = stretches[rng.integers(0, len(stretches), count)]
            weights *= scales
            weights *= np.exp(rng.normal(0, ROW_SPREAD, (count, 1))).astype(np.float32)
            yield first, weights

    def vector(self, name: str, length: int) -> FloatArray:
        """A norm's weights, about 1, or biases, about 0."""
        rng = np.random.default_rng([self.seed, 3, zlib.crc32(name.encode())])
        if name.endswith("bias"):
            values = rng.normal(0, BIAS_SCALE, length)
        else:
            values = np.exp(rng.normal(0, NORM_SPREAD, length))
        return values.astype(np.float32)


def column_scales(rng: np.random.Generator, columns: int) -> FloatArray:
    """The factor of each column: about 1 / sqrt(columns), so that a matmul keeps its input's size."""
    scales = np.exp(rng.normal(0, COLUMN_SPREAD, columns)) / math.sqrt(columns)
    outliers = rng.choice(columns, max(1, round(columns * OUTLIER_SHARE)), replace=False)
    scales[outliers] *= rng.uniform(*OUTLIER_SCALE, len(outliers))
    return scales.astype(np.float32)


class RandomTensors:
    """The tensors of a checkpoint that is nowhere: a `TensorSource`."""

    def __init__(self, random_weights: RandomWeights, shapes: Mapping[str, tuple[int, ...]]):
        self._random = random_weights
        self.entries = {
            name: TensorEntry(Path("drawn"), name, "F16", shape, 0) for name, shape in shapes.items()
        }

    def read(self, name: str) -> FloatArray:
        """A whole tensor."""
        return self.read_rows(name, 0, self.entries[name].shape[0])

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` (exclusive) of a tensor."""
        shape = self.entries[name].shape
        if len(shape) == 1:
            return self._random.vector(name, shape[0])[start:stop]
        return self._random.rows(name, shape, start, stop)

    def count_not_finite(self, name: str, start: int, stop: int) -> int:
        """How many of the values in rows `start` to `stop` are NaN or infinite."""
        return int(np.count_nonzero(~np.isfinite(self.read_rows(name, start, stop))))


class RandomBlocks:
    """Rows that are encoded already: for each type and width some are drawn and encoded, once.

    A row of any tensor is put together from stretches that stand at the same columns there, each from a row of its
    own; that takes the time of copying.
    """

    def __init__(self, random_weights: RandomWeights, plan: Iterable[PlannedTensor]):
        self._random = random_weights
        forms = {(tensor.kind, tensor.shape[-1]) for tensor in plan if len(tensor.shape) > 1}
        self._pools = {form: self._encode(*form) for form in sorted(forms)}

    def encode_rows(self, tensor: PlannedTensor, start: int, stop: int) -> NDArray[np.uint8]:
        """Rows `start` to `stop` (exclusive) in the tensor's type, bytes (rows, row_bytes)."""
        columns = tensor.shape[-1]
        if len(tensor.shape) == 1:
            return encode(self._random.vector(tensor.source, columns)[None], tensor.kind)
        pool = self._pools[tensor.kind, columns]
        rng = np.random.default_rng([self._random.seed, 4, zlib.crc32(tensor.source.encode()), start])
        rows, parts = (stop - start) * math.prod(tensor.shape[1:-1]), pool.shape[1]
        chosen = rng.integers(0, len(pool), (rows, parts))
        # indices into the flat pool: row * parts + part
        taken = pool.ravel().take(chosen * parts + np.arange(parts))
        return np.asarray(taken.view(np.uint8))

    def _encode(self, kind: GgmlType, columns: int) -> NDArray[np.void]:
        """Encoded rows as (rows, parts) of a stretch of weights each."""
        rows = max(1, _ENCODED_WEIGHTS // columns)
        weights = self._random.rows(f"{kind.name}.{columns}", (rows, columns), 0, rows)
        stretch = math.gcd(columns, _STRETCH)
        return encode(weights, kind).view(np.dtype((np.void, kind.row_bytes(stretch))))
