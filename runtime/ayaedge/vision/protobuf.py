"""Protocol Buffers as ONNX files use them: the fields of a message, one after the other, without a library for it."""

from __future__ import annotations

from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

_MOST_BITS = 64
_NONE = "it is damaged, or no ONNX file"


class WireError(ValueError):
    """Bytes that are no message."""


class Part(NamedTuple):
    """A stretch of a file: a message, a string or packed numbers."""

    source: mmap | bytes
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    def bytes(self) -> bytes:
        """A copy."""
        return self.source[self.start : self.stop]

    def text(self) -> str:
        """The string that it is; WireError if it is none."""
        try:
            return self.bytes().decode()
        except UnicodeDecodeError as error:
            raise WireError("a name that is not UTF-8") from error

    def fields(self) -> Iterator[tuple[int, int | Part]]:
        """Numbers of a message's fields with their values: a whole number, the bits of a float, or what is inside."""
        place = self.start
        while place < self.stop:
            tag, place = self._varint(place)
            number, wire = tag >> 3, tag & 7
            if number == 0:
                raise WireError(_NONE)
            if wire == 0:
                value, place = self._varint(place)
                yield number, value
                continue
            size = {1: 8, 5: 4}.get(wire)
            if wire == 2:
                size, place = self._varint(place)
            if size is None or place + size > self.stop:
                raise WireError(_NONE)
            yield number, Part(self.source, place, place + size)
            place += size

    def integers(self) -> list[int]:
        """Packed whole numbers, with their signs."""
        found, place = [], self.start
        while place < self.stop:
            value, place = self._varint(place)
            found.append(signed(value))
        return found

    def _varint(self, place: int) -> tuple[int, int]:
        if place < self.stop and (byte := self.source[place]) < 0x80:
            return byte, place + 1  # nearly all that a graph holds
        value = shift = 0
        while True:
            if place >= self.stop or shift >= _MOST_BITS:
                raise WireError(_NONE)
            byte = self.source[place]
            value |= (byte & 0x7F) << shift
            place, shift = place + 1, shift + 7
            if byte < 0x80:
                return value, place


def signed(value: int) -> int:
    """A whole number as an int64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
