"""Where decoder states are kept for the next question: in memory, or in files that outlive the process.

Knows bytes under keys, a limit on their sum, and that whatever was used least recently goes first. What a state is
and what its key is made of is decided in `engine.prefix_cache`. A file that is damaged or foreign is never used.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ayaedge.files import ABANDONED, can_read, forget_abandoned, make_private, matching, replacing

logger = logging.getLogger(__name__)

State = NDArray[np.uint8]

_MAGIC = b"ayaedge state 2\n"
_SUFFIX = ".state"
_HEADER = len(_MAGIC) + hashlib.sha256().digest_size


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

    Several processes may share a directory: a file appears at once and whole, and its content is checked against a
    SHA-256 whenever it is read.
    """

    def __init__(self, directory: Path, limit: int) -> None:
        self.directory, self._limit = directory, limit

    def load(self, key: str) -> State | None:
        """See `StateStore`; a damaged file is removed."""
        path = self._path(key)
        try:
            content = np.fromfile(path, np.uint8)
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("the state %s cannot be read: %s", path, error)
            return None
        state = content[_HEADER:]
        if content[:_HEADER].tobytes() != _MAGIC + hashlib.sha256(state.data).digest():
            logger.warning("the state %s is damaged and was removed", path)
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
        if not self.wants(state.nbytes):
            return
        try:
            make_private(self.directory)
            self.prune(self._limit - size)
            with replacing(self._path(key), private=True) as stream:
                stream.write(_MAGIC + hashlib.sha256(state.data).digest())
                stream.write(state.data)
        except OSError as error:
            logger.warning("a state could not be kept in %s: %s", self.directory, error)

    def entries(self) -> list[StoredState]:
        """All states, the one that was used least recently first."""
        found = []
        for path in matching(self.directory, f"*{_SUFFIX}"):
            with suppress(OSError):  # another process may have removed it
                stat = path.stat()
                found.append(StoredState(path, stat.st_size, stat.st_mtime))
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
