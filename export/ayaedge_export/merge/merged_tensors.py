"""The tensors of a checkpoint whose decoder is merged with a language model, combined as they are read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np

from ayaedge.hardware.machine import usable_threads
from ayaedge_export.checkpoint.spec import EMBEDDINGS_TENSOR
from ayaedge_export.checkpoint.tensors import TensorEntry, TensorSource, rounded, slabs
from ayaedge_export.merge.methods import (
    FloatArray,
    MergeMethod,
    add_difference,
    arc_factors,
    mix,
    products,
)


class MergedTensors:
    """A `TensorSource`: the decoder's tensors combined, all others as they are.

    Rows are combined in float32 and rounded to the format in which the checkpoint stores the tensor, as a merged
    checkpoint's would be. At the weight 0 they are the base's, at 1 the checkpoint's (but for task arithmetic), without
    any rounding. Memory: the rows that are asked for, once more for each further model. Several threads may read.
    """

    def __init__(
        self,
        own: TensorSource,
        base: TensorSource,
        names: Collection[str],
        *,
        method: MergeMethod,
        weight: float,
        ancestor: TensorSource | None = None,
        own_rows: Collection[int] = (),
    ):
        """`names` are merged; `own_rows` of the embeddings stay the checkpoint's. `ancestor` is task arithmetic's."""
        self._own, self._base, self._names = own, base, frozenset(names)
        self._method, self._weight = method, weight
        self._ancestor = ancestor or base
        self._own_rows = np.array(sorted(own_rows), np.int64)
        self._factors: dict[str, tuple[float, float] | None] = {}
        self._measuring = Lock()

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """The checkpoint's."""
        return self._own.entries

    def read(self, name: str) -> FloatArray:
        """A whole tensor."""
        shape = self.entries[name].shape
        whole = np.empty(shape, np.float32)
        for start, stop in slabs(shape):
            whole[start:stop] = self.read_rows(name, start, stop)
        return whole

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` (exclusive) of a tensor."""
        if name not in self._names:
            return self._own.read_rows(name, start, stop)
        rows = self._combined(name, start, stop)
        if name == EMBEDDINGS_TENSOR:
            first, last = np.searchsorted(self._own_rows, (start, stop))
            for row in self._own_rows[first:last].tolist():
                rows[row - start] = self._own.read_rows(name, row, row + 1)[0]
        return rows

    def count_not_finite(self, name: str, start: int, stop: int) -> int:
        """How many of the values in rows `start` to `stop` are NaN or infinite."""
        return int(np.count_nonzero(~np.isfinite(self.read_rows(name, start, stop))))

    def _combined(self, name: str, start: int, stop: int) -> FloatArray:
        if self._weight == 0:
            return self._base.read_rows(name, start, stop)
        own = self._own.read_rows(name, start, stop)
        if self._weight == 1 and self._method != "task-arithmetic":
            return own
        base = self._base.read_rows(name, start, stop)
        factors = self._arc(name) if self._method == "slerp" else None
        if factors:
            merged = mix(own, base, *factors)
        elif self._ancestor is self._base:
            merged = add_difference(own, base, base, self._weight)
        else:
            merged = add_difference(own, base, self._ancestor.read_rows(name, start, stop), self._weight)
        return rounded(merged, self.entries[name].dtype)

    def _arc(self, name: str) -> tuple[float, float] | None:
        """The factors of a tensor, which are found at its first use: both are read to their ends for that."""
        if name not in self._factors:
            with self._measuring:
                if name not in self._factors:
                    self._factors[name] = self._measure(name)
        return self._factors[name]

    def _measure(self, name: str) -> tuple[float, float] | None:
        with ThreadPoolExecutor(usable_threads()) as pool:
            parts = pool.map(
                lambda rows: products(self._own.read_rows(name, *rows), self._base.read_rows(name, *rows)),
                slabs(self.entries[name].shape),
            )
            dot, square_own, square_base = sum(parts, np.zeros(3)).tolist()
        return arc_factors(dot, square_own, square_base, self._weight)
