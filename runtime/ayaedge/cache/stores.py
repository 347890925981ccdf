"""Where decoder states are kept for the next question: in memory, or in files that outlive the process.

Knows bytes under keys, a limit on their sum, and that whatever was used least recently goes first. What a state is
and what its key is made of is decided in `engine.prefix_cache`. A file that is damaged or foreign is never used:
llama.cpp trusts the states that it is given, so each carries this user's mark, which covers its key too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import struct
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from ayaedge.cache.user_secret import is_marked, mark, user_secret
from ayaedge.files import ABANDONED, can_read, forget_abandoned, make_private, matching, replacing
from ayaedge.untrusted.regular_file import open_regular

logger = logging.getLogger(__name__)

State = NDArray[np.uint8]

_MAGIC = b"ayaedge state 3\n"
_SUFFIX = ".state"
_NAME = re.compile(rf"[0-9a-f]+{re.escape(_SUFFIX)}")
_HEAD = struct.Struct("<16sQ32s64s")
"""Magic, bytes of the state, their SHA-256, and the mark of key, size and SHA-256."""
_HEADER = _HEAD.size


READ_ONLY = 1
"""Bytes that no file fits into: states are read and none is written."""


class StateStore(Protocol):
    """Keeps states under keys of hexadecimal digits."""

    def load(self, key: str) -> State | None:
        """The state under `key`, or None."""

    def save(self, key: str, state: State) -> None:
        """Keep a state; whatever goes wrong is logged and nothing else happens."""

    def holds(self, key: str) -> bool:
        """Whether there is a state under `key`, which may still turn out to be damaged."""

    def wants(self, nbytes: int) -> bool:
        """Whether a state of this size would be kept."""


class RecentArrays:
    """Arrays in this process's memory: a `StateStore`, or embeddings by what they were made of."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._arrays: OrderedDict[str, NDArray[Any]] = OrderedDict()

    def load(self, key: str) -> NDArray[Any] | None:
        """See `StateStore`."""
        if key in self._arrays:
            self._arrays.move_to_end(key)
        return self._arrays.get(key)

    def holds(self, key: str) -> bool:
        """See `StateStore`."""
        return key in self._arrays

    def wants(self, nbytes: int) -> bool:
        """See `StateStore`."""
        return nbytes <= self._limit

    def save(self, key: str, state: NDArray[Any]) -> None:
        """See `StateStore`; what is larger than the limit is not kept."""
        if not self.wants(state.nbytes):
            return
        self._arrays[key] = state
        self._arrays.move_to_end(key)
        while sum(kept.nbytes for kept in self._arrays.values()) > self._limit:
            self._arrays.popitem(last=False)


@dataclass(frozen=True)
class StoredState:
    """One file of a `DiskStates`."""

    path: Path
    nbytes: int
    used: float
    """When it was last written or read, seconds since 1970."""


class DiskStates:
    """States in files that only this user may read: they hold what his images and questions say.

    Several processes may share a directory: a file appears at once and whole. When it is read, its mark comes first:
    no file of anybody else's is read further than that, whatever its size.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self._limit = directory, limit

    @cached_property
    def _secret(self) -> bytes | None:
        return user_secret(self.directory)

    def load(self, key: str) -> State | None:
        """See `StateStore`; a damaged file is removed."""
        path = self._path(key)
        if not can_read(path) or self._secret is None:
            return None
        try:
            with open_regular(path, links=False) as stream:
                state = _read_state(stream, key, self._secret)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("the state %s cannot be read: %s", path, error)
            return None
        except ValueError as error:
            logger.warning("the state %s is damaged and was removed: %s", path, error)
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        return state

    def holds(self, key: str) -> bool:
        """See `StateStore`."""
        return can_read(self._path(key))

    def wants(self, nbytes: int) -> bool:
        """See `StateStore`."""
        return _HEADER + nbytes <= self._limit

    def save(self, key: str, state: State) -> None:
        """See `StateStore`; makes room first, and keeps nothing that is larger than the limit."""
        size = _HEADER + state.nbytes
        if not self.wants(state.nbytes) or self._secret is None:
            return
        try:
            make_private(self.directory)
            self.prune(self._limit - size)
            with replacing(self._path(key), private=True) as stream:
                stream.write(_header(key, state, self._secret))
                stream.write(state.data)
        except OSError as error:
            logger.warning("a state could not be kept in %s: %s", self.directory, error)

    def entries(self) -> list[StoredState]:
        """All states, the one that was used least recently first."""
        found = []
        for path in matching(self.directory, f"*{_SUFFIX}"):
            with suppress(OSError):  # another process may have removed it
                status = path.lstat()
                if _NAME.fullmatch(path.name) and stat.S_ISREG(status.st_mode):
                    found.append(StoredState(path, status.st_size, status.st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def prune(self, limit: int) -> list[StoredState]:
        """Remove the least recently used states until the rest takes `limit` bytes; returns those that went."""
        forget_abandoned(self.directory, 0.0 if limit == 0 else ABANDONED)
        entries, removed = self.entries(), []
        excess = sum(entry.nbytes for entry in entries) - limit
        for entry in entries:
            if excess <= 0:
                break
            with suppress(OSError):
                entry.path.unlink()
            removed.append(entry)
            excess -= entry.nbytes
        return removed

    def _path(self, key: str) -> Path:
        return self.directory / f"{key}{_SUFFIX}"


def _header(key: str, state: State, secret: bytes) -> bytes:
    digest = hashlib.sha256(state.data)
    made = mark(secret, "state", key, state.nbytes, digest.hexdigest())
    return _HEAD.pack(_MAGIC, state.nbytes, digest.digest(), made.encode())


def _read_state(stream: BinaryIO, key: str, secret: bytes) -> State:
    """The state in a file; ValueError for one that was not written under this key with this secret, or is not whole."""
    head = stream.read(_HEADER)
    if len(head) < _HEADER:
        raise ValueError(f"it ends after {len(head)} bytes")
    magic, size, digest, made = _HEAD.unpack(head)
    if magic != _MAGIC or not is_marked(
        secret, made.decode("ascii", "replace"), "state", key, size, digest.hex()
    ):
        raise ValueError("it was not written by this user, under this name")
    if os.fstat(stream.fileno()).st_size != _HEADER + size:
        raise ValueError("it has another size than it had")
    state, place = np.empty(size, np.uint8), 0
    while place < size and (count := stream.readinto(state[place:].data)):  # type: ignore[attr-defined]
        place += count
    if place < size or hashlib.sha256(state.data).digest() != digest:
        raise ValueError("its SHA-256 differs")
    return state
