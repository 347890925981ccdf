"""Where decoder states are kept for the next question: in memory, or in files that outlive the process.

Knows bytes under keys, a limit on their sum, and that whatever was used least recently goes first. What a state is
and what its key is made of is decided in `engine.prefix_cache`. A file that is damaged or foreign is never used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import platformdirs
from numpy.typing import NDArray

from ayaedge.cache.prepared_graphs import (
    ABANDONED,
    PreparedGraphs,
    can_read,
    can_write,
    make_private,
    matching,
)
from ayaedge.checks import check_options, make_plain, path_of, whole_number

logger = logging.getLogger(__name__)

State = NDArray[np.uint8]

_MAGIC = b"ayaedge state 2\n"
_SUFFIX = ".state"
_HEADER = len(_MAGIC) + hashlib.sha256().digest_size


@dataclass(frozen=True)
class CacheOptions:
    """How much of what was computed is kept; 0 switches that part off."""

    disk_bytes: int = 4_000_000_000
    """Most bytes of files, for this and later processes; with 0 none is read either, nor what `ayaedge tune` found."""
    memory_bytes: int = 1_000_000_000
    """Most bytes in this process: of states if there are no files, three pictures of the 8B at the default; else of
    image embeddings, a quarter. Another quarter is for conversations that wait while another one goes on."""
    directory: Path | None = None
    """Of the files; by default `cache_directory()`."""

    def __post_init__(self) -> None:
        make_plain(self)
        check_options(
            whole_number("disk_bytes", self.disk_bytes, least=0),
            whole_number("memory_bytes", self.memory_bytes, least=0),
        )
        if self.directory is not None:
            object.__setattr__(self, "directory", path_of("directory", self.directory))

    @property
    def embedding_bytes(self) -> int:
        """Most bytes of image embeddings."""
        return self.memory_bytes // 4

    @property
    def turn_bytes(self) -> int:
        """Most bytes of states of conversations that others have displaced."""
        return self.memory_bytes // 4

    @property
    def root(self) -> Path | None:
        """The directory of all files; None if none are kept, or there is no place for them."""
        return (self.directory or cache_directory()) if self.disk_bytes else None

    def settled(self) -> CacheOptions:
        """The same with a directory that is there; with less, and one warning logged, where it cannot be written.

        What others have put into one that can only be read is used.
        """
        root = self.root
        if not self.disk_bytes or (root is not None and can_write(root)):
            return self
        why = "this user has no home directory" if root is None else f"{root} cannot be written"
        logger.warning("nothing is kept for later processes: %s; %s", why, NAME_ANOTHER)
        return replace(self, disk_bytes=_READ_ONLY if root is not None and can_read(root) else 0)

    def prepared(self) -> PreparedGraphs | None:
        """Where prepared vision graphs are kept, if files are kept at all; they do not count as `disk_bytes`."""
        return PreparedGraphs(root / "vision") if (root := self.root) else None

    def states(self) -> StateStore:
        """The store that these options describe."""
        return DiskStates(root, self.disk_bytes) if (root := self.root) else RecentArrays(self.memory_bytes)


NO_CACHE = CacheOptions(disk_bytes=0, memory_bytes=0)

NAME_ANOTHER = "AYAEDGE_CACHE_DIR names another directory"
_READ_ONLY = 1
"""Bytes that no file fits into: states are read and none is written."""


def cache_directory() -> Path | None:
    """The user's directory: AYAEDGE_CACHE_DIR, or the one that the system provides for caches.

    States lie in it, prepared vision graphs in `vision`, measurements of this machine in `machine`. None for a user
    without a home directory, as a container's may be.
    """
    if chosen := os.environ.get("AYAEDGE_CACHE_DIR"):
        return Path(chosen)
    try:
        found = platformdirs.user_cache_dir("ayaedge", appauthor=False)
    except (RuntimeError, ValueError, KeyError):  # as pathlib, Windows' variables and `pwd` say it
        return None
    return None if found.startswith("~") else Path(found)  # which nobody could replace


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
    """States in files that only this user may read: they hold what his pictures and questions say.

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
        temporary = self.directory / f"{key}.{secrets.token_hex(4)}.partial"
        try:
            make_private(self.directory)
            self.prune(self._limit - size)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:  # noqa: PTH123
                stream.write(_MAGIC + hashlib.sha256(state.data).digest())
                stream.write(state.data)
            temporary.replace(self._path(key))
        except OSError as error:
            logger.warning("a state could not be kept in %s: %s", self.directory, error)
            with suppress(OSError):
                temporary.unlink()

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
        for path in matching(self.directory, "*.partial"):
            with suppress(OSError):
                if limit == 0 or time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink()
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
