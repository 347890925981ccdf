"""The header of a GGUF file, its keys and its tensors, read within bounds by our own few lines.

llama.cpp ends the process on many a header that no exporter writes, so none goes there unread. What the keys mean is
not known here: see `gguf_header` and `gguf_check`.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 32
"""Bytes of which the place of each tensor is a multiple."""
_MAGIC, _VERSION = b"GGUF", 3
_READS = (1 << 24, 1 << 28)
"""Bytes that are read at first, more than the header of a released checkpoint has, and at most."""
_MOST_KEYS, _MOST_TENSORS, _MOST_ITEMS = 256, 1 << 14, 1 << 24
_LONGEST_NAME, _LONGEST_STRING = 255, 1 << 22
_MOST_DIMENSIONS = 4
_U32, _I64, _U64 = struct.Struct("<I"), struct.Struct("<q"), struct.Struct("<Q")
_NUMBERS = {
    0: ("uint8", "<u1"), 1: ("int8", "<i1"), 2: ("uint16", "<u2"), 3: ("int16", "<i2"), 4: ("uint32", "<u4"),
    5: ("int32", "<i4"), 6: ("float32", "<f4"), 7: ("bool", "<u1"), 10: ("uint64", "<u8"), 11: ("int64", "<i8"),
    12: ("float64", "<f8"),
}  # fmt: skip
"""Of `gguf_type`: what is stored in so many bytes."""
_STRING, _ARRAY = 8, 9
_PREFIX = 8
"""Bytes of a string's length, which stand in front of it."""
_USUAL = 32
"""Bytes of a string with its length, more than the mean of any vocabulary."""
_MIXER = 0x9E3779B97F4A7C15
"""An odd number with bits everywhere."""
_PART, _STRINGS = 1 << 18, 1 << 12
"""Bytes and strings that are looked at together: more would not stay in the processor's cache."""
_MOST_RUNS = 1000
"""Of strings of usual length, before all others are gone through one by one."""


class StorageType(NamedTuple):
    """How ggml stores weights: in blocks."""

    name: str
    weights: int
    """Of a block."""
    block_bytes: int


STORAGE_TYPES = {
    0: StorageType("F32", 1, 4), 1: StorageType("F16", 1, 2), 6: StorageType("Q5_0", 32, 22),
    7: StorageType("Q5_1", 32, 24), 8: StorageType("Q8_0", 32, 34), 12: StorageType("Q4_K", 256, 144),
    13: StorageType("Q5_K", 256, 176), 14: StorageType("Q6_K", 256, 210), 23: StorageType("IQ4_XS", 256, 136),
}  # fmt: skip
"""By ggml's numbers, all that the exporter writes."""


@dataclass(frozen=True)
class Strings:
    """An array of strings, which stay packed as they lie in the file."""

    packed: NDArray[np.uint8]
    """One behind the other, each with `_PREFIX` zeros in front."""
    starts: NDArray[np.int64]
    """Place of each string in `packed`."""
    lengths: NDArray[np.int64]
    """Bytes of each."""

    def __len__(self) -> int:
        return len(self.starts)

    def fault(self) -> str | None:
        """What makes one of the strings no text, in words; None if all are text."""
        for first in range(0, len(self), _STRINGS):
            begin = self.starts[first] - _PREFIX
            end = (
                self.starts[first + _STRINGS] - _PREFIX if first + _STRINGS < len(self) else self.packed.size
            )
            try:
                str(self.packed[begin:end].data, "utf-8")
            except UnicodeDecodeError as error:
                return f"number {self._number(begin + error.start)} is not UTF-8"
        if self.packed.size - np.count_nonzero(self.packed) == _PREFIX * len(self):
            return None
        prefixes = self.starts[:, None] - np.arange(1, _PREFIX + 1)
        return f"number {self._number(np.setdiff1d(self.places(0), prefixes)[0])} holds a zero byte"

    def __getitem__(self, number: int) -> bytes:
        start = int(self.starts[number])
        return self.packed[start : start + int(self.lengths[number])].tobytes()

    def doubled(self) -> tuple[int, int] | None:
        """Numbers of two strings that are the same, if there are such; right where there is no fault."""
        keys = self._keys()
        order = np.argsort(keys)
        same = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        seen: dict[bytes, int] = {}
        for number in np.unique(order[np.concatenate([same, same + 1])]).tolist():
            first = seen.setdefault(self[number], number)
            if first != number:
                return first, number
        return None

    def _keys(self) -> NDArray[np.uint64]:
        """A number for each string, made of its length and four words: different ones mean different strings."""
        padded = np.append(self.packed, np.zeros(_PREFIX, np.uint8))
        words: NDArray[np.uint64] = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))
        keys = self.lengths.astype(np.uint64)
        # all bytes of up to 32; behind each string are zeros, those of the next one's length
        firsts = [np.minimum(self.lengths, place) for place in (0, 8, 16, 24)]
        for place in (*firsts[:3], np.maximum(firsts[3], self.lengths - 8)):
            keys *= np.uint64(_MIXER)
            keys ^= keys >> np.uint64(32)
            keys += words[self.starts + place]
        return keys

    def places(self, byte: int) -> NDArray[np.int64]:
        """Where a byte stands in `packed`, in order."""
        return np.flatnonzero(self.packed == byte)

    def _number(self, place: int) -> int:
        return max(0, int(np.searchsorted(self.starts, place, "right")) - 1)


class Value(NamedTuple):
    """What a key holds."""

    kind: str
    """`uint32`, `string`, `array of bool` and so on."""
    value: Any
    """An int, float, bool or str; an array of numbers; or `Strings`."""


class Tensor(NamedTuple):
    """What the header says of a tensor."""

    name: str
    shape: tuple[int, ...]
    """Rows first, as in numpy."""
    kind: int
    """Ggml's number of the storage type."""
    offset: int
    """Bytes behind the begin of all data."""

    @property
    def nbytes(self) -> int | None:
        """Its size; None for a storage type that is not in `STORAGE_TYPES` or does not divide its rows."""
        stored = STORAGE_TYPES.get(self.kind)
        if stored is None or not self.shape or self.shape[-1] % stored.weights:
            return None
        weights = 1
        for size in self.shape:
            weights *= size
        return weights // stored.weights * stored.block_bytes


@dataclass
class Header:
    """Everything that stands in front of the data."""

    file_bytes: int
    values: dict[str, Value] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """Names that stand there twice; each is in `values` and `tensors` as it came first."""
    data_start: int = 0
    """Bytes in front of the data."""


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file; OSError if that fails, ValueError if it is damaged or announces absurd counts."""
    with path.open("rb") as stream:
        return _read(stream)


def _read(stream: BinaryIO) -> Header:
    size = os.fstat(stream.fileno()).st_size
    for wanted in _READS:
        stream.seek(0)
        data = stream.read(wanted)
        try:
            return _Reader(data).header(size)
        except EOFError:
            if len(data) < wanted:
                raise ValueError("it ends within its header; copy or export it again") from None
    raise ValueError(f"its header is longer than {_READS[-1]} bytes")


class _Reader:
    """Goes through the bytes of a header; EOFError behind their end, ValueError for what no header has."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def header(self, file_bytes: int) -> Header:
        if self._bytes(len(_MAGIC)) != _MAGIC:
            raise ValueError("it does not begin as a GGUF file does")
        version = self._take(_U32)
        if version != _VERSION:
            swapped = version == int.from_bytes(_U32.pack(_VERSION), "big")
            what = (
                "it is written for processors with the other byte order" if swapped else f"it has {version}"
            )
            raise ValueError(f"only version {_VERSION} of the format is known here, and {what}")
        tensors = self._count("tensors", _MOST_TENSORS)
        keys = self._count("keys", _MOST_KEYS)
        header = Header(file_bytes)
        for _ in range(keys):
            key = self._text("a key", _LONGEST_NAME)
            value = self._value(key)
            if header.values.setdefault(key, value) is not value:
                header.faults.append(f"{key!r} stands there twice")
        self._tensors(header, tensors)
        header.data_start = self._at + -self._at % ALIGNMENT
        return header

    def _tensors(self, header: Header, count: int) -> None:
        seen = set()
        for _ in range(count):
            tensor = self._tensor()
            if tensor.name in seen:
                header.faults.append(f"tensor {tensor.name!r} stands there twice")
            seen.add(tensor.name)
            header.tensors.append(tensor)

    def _tensor(self) -> Tensor:
        name = self._text("a tensor's name", _LONGEST_NAME)
        dimensions = self._take(_U32)
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._take(_I64) for _ in range(dimensions))[::-1]
        return Tensor(name, shape, self._take(_U32), self._take(_U64))

    def _value(self, key: str) -> Value:
        number = self._take(_U32)
        if number == _STRING:
            return Value("string", self._text(key, _LONGEST_STRING))
        if number == _ARRAY:
            return self._array(key)
        kind, values = self._numbers(key, number, 1)
        return Value(kind, bool(values[0]) if kind == "bool" else values[0].item())

    def _array(self, key: str) -> Value:
        number, count = self._take(_U32), self._count(f"items of {key}", _MOST_ITEMS)
        if number == _STRING:
            return Value("array of string", self._strings(key, count))
        kind, values = self._numbers(key, number, count)
        return Value(f"array of {kind}", values)

    def _numbers(self, key: str, number: int, count: int) -> tuple[str, NDArray[Any]]:
        if number not in _NUMBERS:
            raise ValueError(f"{key!r} has a type of number {number}, which there is not")
        kind, dtype = _NUMBERS[number]
        return kind, np.frombuffer(self._bytes(count * np.dtype(dtype).itemsize), dtype)

    def _strings(self, key: str, count: int) -> Strings:
        first = self._at
        heads, self._at = _find_strings(self._data, first, count)
        lengths = np.diff(heads, append=self._at) - _PREFIX
        if count and lengths.max() > _LONGEST_STRING:
            raise ValueError(f"{key!r} holds a string of {lengths.max()} bytes")
        packed = np.frombuffer(self._data, np.uint8)[first : self._at].copy()
        heads -= first
        packed[heads] = 0
        for byte in range(1, _PREFIX):  # there is something in these for strings of 256 bytes and more
            packed[heads[lengths > 255] + byte] = 0
        return Strings(packed, heads + _PREFIX, lengths)

    def _text(self, what: str, longest: int) -> str:
        size = self._take(_U64)
        if size > longest:
            raise ValueError(f"{what} has {size} bytes, and {longest} are the most")
        try:
            return self._bytes(size).decode()
        except UnicodeDecodeError:
            raise ValueError(f"{what} is not UTF-8") from None

    def _count(self, what: str, most: int) -> int:
        count: int = self._take(_U64)
        if count > most:
            raise ValueError(f"it announces {count} {what}, and {most} are the most")
        return count

    def _take(self, layout: struct.Struct) -> Any:
        return layout.unpack(self._bytes(layout.size))[0]

    def _bytes(self, size: int) -> bytes:
        begin, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise EOFError
        return self._data[begin : self._at]


def _find_strings(data: bytes, at: int, count: int) -> tuple[NDArray[np.int64], int]:
    """Where each of `count` strings begins with its length, the first at `at`, and where the last ends.

    Nearly all are shorter than 256 bytes, so that seven zeros follow the first byte of their length. Where seven zeros
    are is seen at once, and of a run of such places each must be where the string before it ends.
    """
    likely, ends = _seven_zeros(data, at, count * _USUAL)
    breaks = np.append(np.flatnonzero(ends[:-1] != likely[1:]), len(likely) - 1)
    found = []
    while count:
        first = int(np.searchsorted(likely, at))
        if first < len(likely) and likely[first] == at:
            run = min(count, int(breaks[np.searchsorted(breaks, first)]) + 1 - first)
            found.append(likely[first : first + run])
            at = int(ends[first + run - 1])
        else:
            run = count if len(found) > _MOST_RUNS else 1
            places = _step_through(data, at, run)
            at = places.pop()
            found.append(np.array(places, np.int64))
        count -= run
    if at > len(data):
        raise EOFError
    return np.concatenate([np.zeros(0, np.int64), *found]), at


def _seven_zeros(data: bytes, at: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places behind which seven zeros follow, and where a string with that byte as its length would end."""
    part = np.frombuffer(data, np.uint8)[at : at + size]
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(part), _PART):
        zero = part[start : start + _PART + _PREFIX - 1] == 0
        pairs = zero[:-1] & zero[1:]
        fours = pairs[:-2] & pairs[2:]
        found.append(np.flatnonzero(fours[1:-3] & fours[4:]) + start)
    places = np.concatenate(found)
    return places + at, places + part[places] + (at + _PREFIX)


def _step_through(data: bytes, at: int, count: int) -> list[int]:
    """Where strings of any length begin, and where the last of them ends."""
    places = [at]
    for _ in range(count):
        if at + _PREFIX > len(data):
            raise EOFError
        at += _PREFIX + int(_U64.unpack_from(data, at)[0])
        places.append(at)
    return places
