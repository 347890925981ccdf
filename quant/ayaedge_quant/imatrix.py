"""Importance matrices: how strongly each input column of each linear is driven, and llama.cpp's file format for that.

A matrix made here serves `llama-quantize --imatrix`, and one made by `llama-imatrix` serves us. What feeds the
sums (which model, which text) is not known here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from numpy.typing import NDArray

from ayaedge_quant.gguf_file import DamagedGgufError, GgufFile, GgufTensor, NotGgufError

FloatArray = NDArray[np.float32]

_TYPE = "imatrix"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_MOST_POSITIONS = 1 << 53
_ROWS_AT_ONCE = 512
"""Positions that are squared at once, which bounds the memory."""


class ColumnSums(NamedTuple):
    """What one linear's input was seen to do, in the form that the file has."""

    sums: FloatArray
    """Sum of the squared inputs of each column, (columns,)."""
    positions: int
    """How many were summed."""

    @property
    def mean_squares(self) -> FloatArray:
        """Mean squared input of each column (columns,), rounded as `llama-quantize` does."""
        return np.asarray(self.sums / np.float32(self.positions))


@dataclass(frozen=True)
class ImportanceMatrix:
    """Column sums of every linear that was watched, under its tensor's name in the GGUF file."""

    entries: Mapping[str, ColumnSums]
    datasets: tuple[str, ...] = ()
    """Names of the texts that it was collected on."""
    chunk_size: int = 512
    """Tokens of a sequence, at most."""

    @property
    def chunk_count(self) -> int:
        """Whole sequences' worth of positions, at least 1."""
        return max(1, max((entry.positions for entry in self.entries.values()), default=0) // self.chunk_size)

    def importance(self, name: str) -> NDArray[np.float32] | None:
        """Mean squared input (columns,) of the tensor `name`; None if it was not watched."""
        entry = self.entries.get(name)
        return None if entry is None else entry.mean_squares

    def digest(self) -> str:
        """SHA-256 of all values: two matrices with the same one give the same weights."""
        state = hashlib.sha256(repr((self.datasets, self.chunk_size)).encode())
        for name, entry in sorted(self.entries.items()):
            state.update(f"{name} {entry.positions}".encode())
            state.update(entry.sums.astype("<f4").tobytes())
        return state.hexdigest()


class SquareSums:
    """Gathers weighted mean squares of inputs, part by part, in double precision."""

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._weights: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(
        self,
        name: str,
        x: FloatArray,
        weights: FloatArray,
        *,
        first_column: int = 0,
        columns: int | None = None,
    ) -> None:
        """Add inputs x (positions, part), which weigh `weights` (positions,), to those of the tensor `name`.

        A part of the columns may come alone, beginning at `first_column` of `columns`; every part must come for
        the same positions.
        """
        width = columns or x.shape[1]
        total = self._sums.setdefault(name, np.zeros(width))
        part = total[first_column : first_column + x.shape[1]]
        for start in range(0, len(x), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            part += weights[rows] @ np.square(x[rows])
        if first_column == 0:
            self._weights[name] = self._weights.get(name, 0.0) + float(weights.sum(dtype=np.float64))
            self._counts[name] = self._counts.get(name, 0) + len(x)

    def matrix(self, datasets: tuple[str, ...] = (), *, chunk_size: int = 512) -> ImportanceMatrix:
        """What was gathered; sums are scaled to the number of positions, so that their mean is the weighted one.

        Raises ValueError, naming the tensor, if an input was not finite.
        """
        for name, total in self._sums.items():
            if not np.isfinite(total).all():
                raise ValueError(f"inputs of {name} are not finite")
        entries = {
            name: ColumnSums((sums * (count / self._weights[name])).astype(np.float32), count)
            for name, sums in self._sums.items()
            if (count := self._counts[name]) and self._weights[name] > 0
        }
        return ImportanceMatrix(entries, datasets, chunk_size)


def write_imatrix(path: str | Path, matrix: ImportanceMatrix) -> None:
    """Write `matrix` as llama.cpp does (`save_imatrix` in tools/imatrix/imatrix.cpp), names sorted."""
    writer = _Writer(path)
    try:
        writer.add_type(_TYPE)
        writer.add_array(_DATASETS, list(matrix.datasets) or [""])  # llama-quantize requires the key
        writer.add_uint32(_CHUNK_COUNT, matrix.chunk_count)
        writer.add_uint32(_CHUNK_SIZE, matrix.chunk_size)
        for name in sorted(matrix.entries):
            sums, count = matrix.entries[name]
            writer.add_tensor(name + _SUMS, sums)
            writer.add_tensor(name + _COUNTS, np.array([count], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


class _Writer(gguf.GGUFWriter):  # type: ignore[misc]
    """A GGUF file that names no architecture: it is not a model."""

    def __init__(self, path: str | Path):
        super().__init__(path, "")

    def add_architecture(self) -> None:
        pass


def read_imatrix(path: str | Path) -> ImportanceMatrix:
    """Read a file of `llama-imatrix` or of `write_imatrix`; ValueError says why it is not one.

    A linear without a single position is left out. Raises OSError if the file cannot be read.
    """
    try:
        return _parse(path, GgufFile(Path(path)))
    except DamagedGgufError as error:
        raise ValueError(f"{path} is truncated or damaged ({error})") from None
    except NotGgufError:
        raise ValueError(
            f"{path} is not a GGUF file; an importance matrix in the older form is converted with: "
            f"llama-imatrix --in-file {Path(path).name} -o imatrix.gguf"
        ) from None


def _parse(path: str | Path, file: GgufFile) -> ImportanceMatrix:
    kind = file.values.get("general.type", "no general.type")
    if not isinstance(kind, str) or kind != _TYPE:
        raise ValueError(
            f"{path} is a GGUF file, but not an importance matrix ({kind!s:.60} instead of 'imatrix')"
        )
    missing = [key for key in (_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE) if key not in file.values]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}, which llama-quantize requires too")
    entries = {name: entry for name, entry in _entries(path, file.tensors()) if entry.positions > 0}
    if not entries:
        raise ValueError(f"{path} holds no data")
    datasets, chunk_size = file.values[_DATASETS], file.values[_CHUNK_SIZE]
    if not isinstance(datasets, list) or type(chunk_size) is not int or chunk_size < 1:
        raise ValueError(f"{path}: {_DATASETS} must be texts, and {_CHUNK_SIZE} a number of 1 or more")
    return ImportanceMatrix(entries, tuple(name for name in datasets if name), chunk_size)


def _entries(path: str | Path, tensors: Mapping[str, GgufTensor]) -> Iterator[tuple[str, ColumnSums]]:
    names = {name.removesuffix(end) for name in tensors for end in (_SUMS, _COUNTS) if name.endswith(end)}
    for name in sorted(names):
        sums, counts = tensors.get(name + _SUMS), tensors.get(name + _COUNTS)
        if sums is None or counts is None:
            raise ValueError(f"{path} has only one of {name}{_SUMS} and {name}{_COUNTS}")
        if sums.data is None or counts.data is None:
            raise ValueError(f"{path}: sums and counts of {name} must be F32")
        if counts.size != 1:
            raise ValueError(
                f"{path}: {name} belongs to a mixture of {counts.size} experts, which we do not have"
            )
        values, count = np.array(sums.data, np.float32), float(counts.data[0])
        if not 0 <= count <= _MOST_POSITIONS:
            raise ValueError(f"{path}: {name} counts {count:g} positions")
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError(f"{path}: sums of {name} are not finite or negative")
        yield name, ColumnSums(values, round(count))
