"""Weights of a checkpoint: which tensors there are, where they lie, and rows of them as float32.

Knows safetensors files, sharding and the spellings of names; what a model needs is not its business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ayaedge.errors import CheckpointError, list_faults
from ayaedge.text_file import read_text

WeightSource = Callable[[str], NDArray[np.float32]]
"""Gives a whole tensor as float32 by the name it has on the hub."""

_SLAB_WEIGHTS = 1 << 22
"""Weights that are read at once: 16 MB as float32."""
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_STORED_AS: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
}
_INFINITY: dict[str, int] = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}
"""The bits of infinity; whatever lies above them, sign aside, is not a number."""
_PARTS = ("language_model.", "vision_tower.", "multi_modal_projector.")


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies."""

    file: Path
    stored_name: str
    dtype: str
    """The file's name of the number format: F16, BF16, F32, ..."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""

    @cached_property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * _STORED_AS[self.dtype].itemsize


class TensorSource(Protocol):
    """Where the tensors of a checkpoint come from; `TensorIndex` is the one that has files."""

    @property
    def entries(self) -> Mapping[str, TensorEntry]:
        """All tensors, by their names on the hub."""
        ...

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` (exclusive) of a tensor."""
        ...

    def count_not_finite(self, name: str, start: int, stop: int) -> int:
        """How many of the values in rows `start` to `stop` are NaN or infinite."""
        ...


class TensorIndex:
    """All tensors of a checkpoint directory, under the names of the hub's files.

    Only headers are read at first; data is mapped, never loaded as a whole. Raises CheckpointError with
    every fault at once: no weights, a missing or damaged shard, two tensors of one name, an unknown format.
    """

    def __init__(self, directory: Path):
        self.entries: dict[str, TensorEntry] = {}
        faults: list[str] = []
        for file in _weight_files(directory, faults):
            self._add_file(file, faults)
        faults += [
            f"tensor {entry.stored_name} is stored as {entry.dtype}; supported are {', '.join(_STORED_AS)}"
            for entry in self.entries.values()
            if entry.dtype not in _STORED_AS
        ]
        if faults:
            raise CheckpointError(list_faults(f"the weights in {directory}", faults))

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor."""
        return _to_float32(self._map(name), self.entries[name].dtype)

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` (exclusive) of a tensor."""
        return _to_float32(self._map(name)[start:stop], self.entries[name].dtype)

    def count_not_finite(self, name: str, start: int, stop: int) -> int:
        """How many of the values in rows `start` to `stop` are NaN or infinite."""
        entry = self.entries[name]
        stored = self._map(name)[start:stop]
        magnitudes = stored.view(f"<u{stored.dtype.itemsize}") << 1  # which drops the sign
        limit = 2 * _INFINITY[entry.dtype]
        if magnitudes.max(initial=0) < limit:
            return 0
        return int(np.count_nonzero(magnitudes >= limit))

    def _map(self, name: str) -> NDArray[Any]:
        entry = self.entries[name]
        return np.memmap(entry.file, _STORED_AS[entry.dtype], "r", entry.offset, entry.shape)

    def _add_file(self, file: Path, faults: list[str]) -> None:
        try:
            with file.open("rb"), safe_open(file, framework="numpy"):
                pass  # the library checks the header and the file's length
            header, data_start = _read_header(file)
        except PermissionError:
            faults.append(f"{file.name} cannot be read: permission denied")
            return
        except (SafetensorError, OSError, ValueError) as error:
            faults.append(f"{file.name} is truncated or not a safetensors file ({error})")
            return
        for stored_name, info in header.items():
            name = canonical_name(stored_name)
            if name in self.entries:
                faults.append(f"{name} is there twice, the second time as {stored_name} in {file.name}")
            start = data_start + info["data_offsets"][0]
            self.entries[name] = TensorEntry(file, stored_name, info["dtype"], tuple(info["shape"]), start)


def slabs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Ranges of the first axis that hold about `_SLAB_WEIGHTS` weights; a vector is one slab."""
    rows = shape[0]
    step = rows if len(shape) == 1 else max(1, _SLAB_WEIGHTS // int(np.prod(shape[1:])))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def canonical_name(name: str) -> str:
    """The name that a tensor has in the hub's files, whatever version of transformers wrote it.

    Newer in-memory names carry a leading `model.`, and lack the inner `model` of the decoder and the inner
    `vision_model` of the tower.
    """
    without = name.removeprefix("model.")
    if without.startswith(_PARTS):
        name = without
    name = re.sub(r"^language_model\.(?=embed_tokens|layers|norm)", "language_model.model.", name)
    name = re.sub(
        r"^vision_tower\.(?=embeddings|encoder|post_layernorm|head)", "vision_tower.vision_model.", name
    )
    return "language_model.lm_head.weight" if name == "lm_head.weight" else name


def _weight_files(directory: Path, faults: list[str]) -> list[Path]:
    index = directory / _INDEX
    if index.exists():
        return _shards(index, faults)
    if (directory / _SINGLE).exists():
        return [directory / _SINGLE]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        faults.append(
            f"{pickled[0]} is a pickle, which can run code and is never opened; convert it with "
            "transformers: save_pretrained(..., safe_serialization=True)"
        )
    else:
        faults.append(f"neither {_SINGLE} nor {_INDEX} is there")
    return []


def _shards(index: Path, faults: list[str]) -> list[Path]:
    try:
        weight_map: dict[str, object] = json.loads(read_text(index))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        faults.append(f"{index.name} cannot be read ({error})")
        return []
    files = []
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            faults.append(f"{index.name} names {name!r}, which is not a file of this directory")
        elif not (index.parent / name).is_file():
            faults.append(f"shard {name}, named in {index.name}, is missing")
        else:
            files.append(index.parent / name)
    return files


def _read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The tensors that a safetensors file declares, and the offset at which data starts."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _to_float32(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)
