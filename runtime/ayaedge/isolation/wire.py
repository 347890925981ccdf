"""Messages between this process and the model's: JSON and plain arrays, of bounded size; nothing is ever pickled.

A model's process runs what a stranger may have made, so it counts as his: what it sends is data, is looked at before
it is used, and can at most be wrong. A message is its length, JSON, and the arrays that it announces. Arrays for the
model lie in memory that both processes share; those that come back, and all of them on Windows, follow the JSON.
"""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from io import BufferedIOBase
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge.errors import BackendError
from ayaedge.untrusted.json_text import MOST_DEPTH, parse_json

Message = dict[str, Any]
Arrays = list[NDArray[Any]]

_LENGTH = struct.Struct("<I")
_MOST_TEXT = 1 << 26
"""Bytes of JSON: 60 times what the longest answer's tokens take."""
_DTYPES = {kind.str: kind for kind in (np.dtype("|u1"), np.dtype("<f4"))}
_SHORT = 1 << 12
"""Bytes of JSON below which numbers cannot take long."""
_MOST_DIMENSIONS = 4
_KEPT = 1 << 23
"""Bytes of shared memory that stay when nothing is in them: new pages cost time with each image."""


class WireError(Exception):
    """The other side has sent what it must not send."""


class Wire:
    """One end of the connection. Any thread may send, one receives; a receiver never sends, so nobody waits in a ring.

    `write` takes some of the bytes that it is given, and says how many. The process of a model `trusts` this one.
    """

    def __init__(
        self,
        source: BufferedIOBase,
        write: Callable[[memoryview], int],
        shared: SharedMemory | None,
        *,
        trusts: bool = False,
    ) -> None:
        self._source, self._write, self._shared, self._trusts = source, write, shared, trusts
        self.received = 0
        """Bytes of JSON so far."""
        self._sending = threading.Lock()
        self._encode = json.JSONEncoder(default=_plain, check_circular=False).encode

    def send(self, message: Message, arrays: Sequence[NDArray[Any]] = (), places: Sequence[int] = ()) -> None:
        """Send a message; arrays that have places in the shared memory are there already."""
        if arrays:
            found = zip_longest(arrays, places)
            message = {**message, "arrays": [[one.dtype.str, one.shape, place] for one, place in found]}
        text = self._encode(message).encode("ascii")
        with self._sending:
            self._write_all(_LENGTH.pack(len(text)) + text)
            for array in arrays if not places else ():
                self._write_all(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def stop(self) -> None:
        """Send nothing any more: whoever does gets an OSError."""
        with self._sending:
            self._write = _refuse

    def receive(self, most: Callable[[Message], int]) -> tuple[Message, Arrays] | None:
        """The next message and its arrays, `most` bytes of them; None at the end. WireError for anything else."""
        head = self._source.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        if length > _MOST_TEXT:
            raise WireError(f"a message of {length} bytes")
        text = self._source.read(length)
        if len(text) < length:
            return None
        self.received += length
        message = self._parse(text)
        announced = _announced(message.pop("arrays", []), most(message))
        try:
            return message, [self._array(*one) for one in announced]
        except EOFError:
            return None

    def _parse(self, text: bytes) -> Message:
        """What JSON says, which is bounded unless it is short: that takes a fifth of the time."""
        short = len(text) <= _SHORT and text.count(b"[") + text.count(b"{") <= MOST_DEPTH
        try:
            message = json.loads(text) if short or self._trusts else parse_json(text, constants=True)
        except (ValueError, RecursionError) as error:
            raise WireError(f"a message that is not JSON: {error}") from None
        if not isinstance(message, dict):
            raise WireError("a message that is no object")
        return message

    def _array(self, kind: np.dtype[Any], shape: tuple[int, ...], place: int | None) -> NDArray[Any]:
        array = np.empty(shape, kind)
        view = array.reshape(-1).view(np.uint8).data
        if place is not None:
            if self._shared is None:
                raise WireError("an array in memory that is not shared")
            self._shared.read(view, place)
            return array
        done = 0
        while done < len(view):
            count = self._source.readinto(view[done:])
            if not count:
                raise EOFError
            done += count
        return array

    def _write_all(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._write(view) :]


class SharedMemory:
    """Memory that both processes see: an anonymous file, of which nothing is left however they end.

    This process writes to it and never maps it, as the other one could end it then by cutting the file off.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._lock = threading.Lock()
        self._held: dict[int, int] = {}
        """Where each stretch that is in use begins, and ends."""

    @classmethod
    def create(cls) -> SharedMemory | None:
        """New memory; None where the system has no such files."""
        if not hasattr(os, "preadv"):
            return None
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("ayaedge"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    @property
    def descriptor(self) -> int:
        """Of the file, for the other process."""
        assert self._descriptor is not None
        return self._descriptor

    @contextmanager
    def holding(self, arrays: Sequence[NDArray[Any]]) -> Iterator[list[int]]:
        """Meanwhile the arrays lie in the file, at these places; BackendError if there is no room."""
        size = max(sum(array.nbytes for array in arrays), 1)
        with self._lock:
            start = self._gap(size)
            self._held[start] = start + size
        try:
            yield self._put(arrays, start)
        finally:
            with self._lock:
                del self._held[start]
                if self._descriptor is not None and start + size > _KEPT:
                    os.ftruncate(self._descriptor, max([_KEPT, *self._held.values()]))

    def read(self, view: memoryview, place: int) -> None:
        """Fill a view of bytes with what lies at a place."""
        done = 0
        while done < len(view):
            count = os.preadv(self.descriptor, [view[done:]], place + done)
            if not count:
                raise WireError("an array that breaks off")
            done += count

    def close(self) -> None:
        """Let go of it; what is held is lost."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is not None:
                os.close(descriptor)

    def _gap(self, size: int) -> int:
        """The first place with room between what is held."""
        start = 0
        for begin, end in sorted(self._held.items()):
            if begin - start > size:
                break
            start = max(start, end)
        return start

    def _put(self, arrays: Sequence[NDArray[Any]], start: int) -> list[int]:
        places = []
        for array in arrays:
            places.append(start)
            view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            with self._lock:
                while view and self._descriptor is not None:
                    try:
                        count = os.pwrite(self._descriptor, view, start)
                    except OSError as error:
                        raise BackendError(f"there is no memory to hand an image over: {error}") from None
                    start, view = start + count, view[count:]
        return places


def _refuse(_data: memoryview) -> int:
    raise BrokenPipeError


def _announced(entries: object, most: int) -> list[tuple[np.dtype[Any], tuple[int, ...], int | None]]:
    """What a message says of its arrays, if all of it may be."""
    if not isinstance(entries, list):
        raise WireError("arrays that are no list")
    found, total = [], 0
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 3:
            raise WireError("an array that is not described")
        kind, shape, place = entry
        numbers = shape if isinstance(shape, list) and len(shape) <= _MOST_DIMENSIONS else [-1]
        numbers = numbers if place is None else [*numbers, place]
        if kind not in list(_DTYPES) or not all(type(number) is int and number >= 0 for number in numbers):
            raise WireError("an array of a kind that is not known")
        total += math.prod(shape) * _DTYPES[kind].itemsize
        if total > most:
            raise WireError(f"arrays of more than {most} bytes")
        found.append((_DTYPES[kind], tuple(shape), place))
    return found


def _plain(value: object) -> Any:
    """What JSON does not have: dataclasses are objects, bytes hexadecimal digits, paths strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return vars(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be handed to another process")
