"""Reading a small GGUF file: every count and size in it is held against what is left of the file.

For importance matrices, which anybody may have written; a model is never read in this way.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_BYTES = 1 << 28
"""An importance matrix of the 32B has 20 MB."""
_MOST_ENTRIES = 1 << 16
"""Keys, or tensors."""
_MOST_TEXTS = 1 << 20
"""Of a list: a vocabulary may be taken for an importance matrix by mistake."""
_MOST_AXES = 4
_F32, _TEXT, _LIST = 0, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_ALIGNMENTS = tuple(1 << power for power in range(17))
_T = TypeVar("_T")


class NotGgufError(ValueError):
    """A file of another form."""


class DamagedGgufError(ValueError):
    """Something in a file cannot be; the message is half a sentence."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor."""

    size: int
    """Number of elements."""
    data: NDArray[np.float32] | None
    """Its numbers (size,) if they are F32."""


class GgufFile:
    """Reads a file; DamagedGgufError for what is wrong with it, NotGgufError if it is another's, OSError as `open`.

    Of a longer file only the first 256 MB are looked at.
    """

    values: Mapping[str, Any]
    """By their keys: numbers, texts, lists of texts, arrays of numbers."""

    def __init__(self, path: Path) -> None:
        self._content, self._place = _beginning(path), len(_MAGIC)
        if not self._content.startswith(_MAGIC):
            raise NotGgufError("it is not a GGUF file")
        version = self._number("I")
        if version not in _VERSIONS:
            raise DamagedGgufError(f"it is of version {version}")
        self._tensor_count, value_count = (self._number("Q") for _ in range(2))
        if max(self._tensor_count, value_count) > _MOST_ENTRIES:
            raise DamagedGgufError(f"it claims {self._tensor_count} tensors and {value_count} keys")
        self.values = self._named(value_count, lambda: self._value(self._number("I")))
        self._values_end = self._place

    def tensors(self) -> dict[str, GgufTensor]:
        """All tensors, by their names."""
        self._place = self._values_end
        infos = self._named(self._tensor_count, self._info)
        alignment = self.values.get("general.alignment", 32)
        if type(alignment) is not int or alignment not in _ALIGNMENTS:
            raise DamagedGgufError("its alignment is no power of 2")
        data_start = -(-self._place // alignment) * alignment
        return {name: self._tensor(data_start, *info) for name, info in infos.items()}

    def _named(self, count: int, read: Callable[[], _T]) -> dict[str, _T]:
        found: dict[str, _T] = {}
        for _ in range(count):
            name = self._text()
            if name in found:
                raise DamagedGgufError(f"it has {name[:60]!r} twice")
            found[name] = read()
        return found

    def _take(self, count: int) -> bytes:
        if count > len(self._content) - self._place:
            raise DamagedGgufError(
                f"byte {self._place} begins {count} bytes, and there are {len(self._content)} in all"
            )
        self._place += count
        return self._content[self._place - count : self._place]

    def _number(self, kind: str) -> Any:
        (value,) = struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))
        return value

    def _text(self) -> str:
        try:
            return self._take(self._number("Q")).decode()
        except UnicodeDecodeError:
            raise DamagedGgufError(f"the text before byte {self._place} is not UTF-8") from None

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind != _LIST:
            raise DamagedGgufError(f"it has a value of the unknown type {kind}")
        inner, count = self._number("I"), self._number("Q")
        if inner in _NUMBERS:
            size = struct.calcsize(f"<{_NUMBERS[inner]}")
            return np.frombuffer(self._take(count * size), f"<{_NUMBERS[inner]}")
        if inner != _TEXT or count > _MOST_TEXTS:
            raise DamagedGgufError(f"it has a list of {count} values of type {inner}")
        return [self._text() for _ in range(count)]

    def _info(self) -> tuple[list[int], int, int]:
        """Shape, type and offset of a tensor."""
        axes = self._number("I")
        if axes > _MOST_AXES:
            raise DamagedGgufError(f"a tensor has {axes} axes")
        return [self._number("Q") for _ in range(axes)], self._number("I"), self._number("Q")

    def _tensor(self, data_start: int, shape: list[int], kind: int, offset: int) -> GgufTensor:
        size = math.prod(shape)
        if kind != _F32:
            return GgufTensor(size, None)
        self._place = min(data_start + offset, len(self._content))
        return GgufTensor(size, np.frombuffer(self._take(4 * size), "<f4"))


def _beginning(path: Path) -> bytes:
    """The first bytes of a regular file; a pipe in its place is not waited for."""

    def at_once(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    with open(path, "rb", opener=at_once) as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise DamagedGgufError("it is not a regular file")
        return stream.read(min(found.st_size, _MOST_BYTES))
