"""Weights of a checkpoint: which tensors there are, where they lie, and rows of them as float32.

Knows safetensors files, sharding and the spellings of names; what a model needs is not its business.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ayaedge.checks import shown
from ayaedge.errors import CheckpointError, list_faults
from ayaedge.manifest import LONGEST_NAME
from ayaedge.untrusted.json_text import read_json
from ayaedge.untrusted.regular_file import open_regular
from ayaedge_export.checkpoint.files import MOST_BYTES, missing_file
from ayaedge_export.checkpoint.handed_over import foreign_tensors, trainer_state
from ayaedge_export.checkpoint.safetensors_header import read_header

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
        return math.prod(self.shape)

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

    Only headers are read at first, then the rows that are asked for. Files are read, never mapped: one that is cut off
    meanwhile is a CheckpointError, and not the end of the process. Raises CheckpointError with every fault at once: no
    weights, a missing or damaged shard, two tensors of one name, an unknown format; or with the one that explains all
    others, as that the weights are quantized.
    """

    def __init__(self, directory: Path, name_of: Callable[[str], str] | None = None):
        """`name_of` gives the name on the hub of a stored one; by default `canonical_name`."""
        self.entries: dict[str, TensorEntry] = {}
        self._name_of = name_of or canonical_name
        self._forms: set[str] = set()
        faults: list[str] = []
        places = _weight_files(directory, faults)
        for file in dict.fromkeys(places.values()):
            self._add_file(file, faults)
        types = {entry.stored_name: entry.dtype for entry in self.entries.values()}
        if foreign := foreign_tensors(types, self._forms):
            raise CheckpointError(f"the weights in {directory}: {foreign}")
        if not faults:
            faults += self._misplaced(places)
        faults += self._unknown_types()
        if faults:
            raise CheckpointError(list_faults(f"the weights in {directory}", faults))

    def _unknown_types(self) -> list[str]:
        """A sentence on each number format that is not known."""
        found: dict[str, list[str]] = {}
        for entry in self.entries.values():
            if entry.dtype not in _STORED_AS:
                found.setdefault(entry.dtype, []).append(entry.stored_name)
        return [
            f"tensor {name}{_and_more(more)} is stored as {dtype}; supported are {', '.join(_STORED_AS)}"
            for dtype, (name, *more) in found.items()
        ]

    def _misplaced(self, places: Mapping[str, Path]) -> list[str]:
        """Sentences on what the index and its shards say of each other, if there is an index."""
        held = {entry.stored_name: entry.file for entry in self.entries.values()}
        if "" in places:
            return []
        lost = [f"{name} in {file.name}" for name, file in places.items() if held.get(name) != file]
        unnamed = [f"{name} in {file.name}" for name, file in held.items() if name not in places]
        found = {"they lack": lost, "it does not name": unnamed}
        return [
            f"{_INDEX} and its shards do not belong together: {told} {names[0]}{_and_more(names[1:])}"
            for told, names in found.items()
            if names
        ]

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors of one shape hold the same numbers; they are compared slab by slab."""
        alike = self.entries[name].dtype == self.entries[other].dtype
        for start, stop in slabs(self.entries[name].shape):
            rows = partial(self._stored if alike else self.read_rows, start=start, stop=stop)
            first, second = rows(name), rows(other)
            if alike:  # bytes, because NaN is not equal to itself
                first, second = first.view(np.uint8), second.view(np.uint8)
            if not np.array_equal(first, second):
                return False
        return True

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor."""
        entry = self.entries[name]
        whole = np.empty(entry.shape, np.float32)
        for start, stop in slabs(entry.shape):
            whole[start:stop] = self.read_rows(name, start, stop)
        return whole

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` (exclusive) of a tensor."""
        return _to_float32(self._stored(name, start, stop), self.entries[name].dtype)

    def count_not_finite(self, name: str, start: int, stop: int) -> int:
        """How many of the values in rows `start` to `stop` are NaN or infinite."""
        entry = self.entries[name]
        stored = self._stored(name, start, stop)
        magnitudes = stored.view(f"<u{stored.dtype.itemsize}") << 1  # which drops the sign
        limit = 2 * _INFINITY[entry.dtype]
        if magnitudes.max(initial=0) < limit:
            return 0
        return int(np.count_nonzero(magnitudes >= limit))

    def _stored(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows as the file has them."""
        entry = self.entries[name]
        rows = np.empty((stop - start, *entry.shape[1:]), _STORED_AS[entry.dtype])
        space = rows.reshape(-1).view(np.uint8).data
        try:
            with open_regular(entry.file) as stream:
                stream.seek(entry.offset + start * math.prod(entry.shape[1:]) * rows.itemsize)
                while space and (count := stream.readinto(space)):  # type: ignore[attr-defined]
                    space = space[count:]
        except ValueError as error:
            raise CheckpointError(f"{entry.file} cannot be read: {error}") from None
        if space:
            raise CheckpointError(
                f"{entry.file} has become shorter since it was opened: tensor {entry.stored_name} is cut off"
            )
        return rows

    def _add_file(self, file: Path, faults: list[str]) -> None:
        try:
            header = read_header(file)
        except PermissionError:
            faults.append(f"{file.name} cannot be read: permission denied")
            return
        except (OSError, ValueError) as error:
            faults.append(f"{file.name} is truncated or not a safetensors file ({error})")
            return
        self._forms.add(header.form)
        for tensor in header.tensors:
            name = self._name_of(tensor.name)
            if name in self.entries:
                faults.append(f"{name} is there twice, the second time as {tensor.name} in {file.name}")
            self.entries[name] = TensorEntry(file, tensor.name, tensor.dtype, tensor.shape, tensor.start)


def _and_more(others: Sequence[str]) -> str:
    return f" (and {len(others)} more)" if others else ""


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


def language_model_name(name: str) -> str:
    """The name that a tensor of a plain language model (`model.layers...`) has in an Aya Vision's decoder."""
    name = re.sub(r"^(?:model\.)?(?=(?:embed_tokens|layers|norm)\.)", "language_model.model.", name)
    return f"language_model.{name}" if name == "lm_head.weight" else name


def _weight_files(directory: Path, faults: list[str]) -> dict[str, Path]:
    """The file of each tensor that an index names, or of "", which is all, without one.

    As in transformers a single file comes before an index. Whole shards next to it are a fault: one of both is old, and
    nothing says which.
    """
    single, index = directory / _SINGLE, directory / _INDEX
    ignored: list[str] = []
    if single.is_symlink() and not single.exists():
        faults.append(missing_file(single))
    elif single.exists():
        shards = _shards(index, ignored) if index.exists() else {}
        if shards and not ignored and set(shards.values()) != {single}:
            first = min(file.name for file in shards.values() if file != single)
            faults.append(
                f"{_SINGLE} is there, and {_INDEX} with all its shards ({first}, ...): transformers takes the first "
                "and leaves out the shards; move away what is not the model that you want"
            )
        return {"": single}
    elif index.exists():
        return _shards(index, faults)
    elif index.is_symlink():
        faults.append(missing_file(index))
    else:
        faults.append(_no_weights(directory))
    return {}


def _no_weights(directory: Path) -> str:
    """What lies there instead of weights, and what to do with it."""
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    others = sorted(path.name for path in directory.glob("*.safetensors"))
    variants = [name for name in others if re.fullmatch(r"model\.[^.]+(-\d+-of-\d+)?\.safetensors", name)]
    if state := trainer_state(directory):
        return f"neither {_SINGLE} nor {_INDEX} is there: {state}"
    if variants:
        return (
            f"there are only weights of a variant ({variants[0]}); rename them (and their index) to {_SINGLE}"
        )
    if others:
        return f"{others[0]} is there, but no {_INDEX} that says which file holds what; copy it too"
    if pickled:
        return (
            f"{pickled[0]} is a pickle, which can run code and is never opened; convert it with transformers, in a "
            "place that you trust: AutoModelForImageTextToText.from_pretrained(OLD, dtype='auto')"
            ".save_pretrained(NEW, safe_serialization=True), and copy the other files to NEW"
        )
    return f"neither {_SINGLE} nor {_INDEX} is there"


def _shards(index: Path, faults: list[str]) -> dict[str, Path]:
    """The file of each tensor, as an index names them."""
    try:
        weight_map: dict[str, object] = read_json(index, most_bytes=MOST_BYTES)["weight_map"]
        places = {name: str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        faults.append(f"{index.name} cannot be read ({error})")
        return {}
    unusable = {name: fault for name in sorted(set(places.values())) if (fault := _shard_fault(index, name))}
    faults += unusable.values()
    return {tensor: index.parent / file for tensor, file in places.items() if file not in unusable}


def _shard_fault(index: Path, name: str) -> str:
    """What is wrong with the name of a shard, or with what lies there; empty if nothing is."""
    shard = index.parent / name
    if Path(name).name != name or name in (".", "..") or len(name) > LONGEST_NAME:
        return f"{index.name} names {shown(name)}, which is not a file of this directory"
    if shard.is_symlink() and not shard.exists():
        return missing_file(shard)
    if not shard.is_file():
        return f"shard {name}, named in {index.name}, is missing"
    return ""


def rounded(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Float32 values to the nearest ones that a file's format (F16, BF16, F32) can hold, ties to even; in place."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        bits += ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)
        bits &= np.uint32(0xFFFF0000)
    elif dtype == "F16":
        with np.errstate(over="ignore"):  # infinity, which whoever encodes it names
            values[...] = values.astype(np.float16)
    return values


def _to_float32(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    if dtype == "BF16":  # the upper half of a float32
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)
