"""How much is kept of what was computed, and where."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import platformdirs

from ayaedge.cache.prepared_graphs import PreparedGraphs
from ayaedge.cache.stores import READ_ONLY, DiskStates, RecentArrays, StateStore
from ayaedge.checks import check_options, make_plain, path_of, whole_number
from ayaedge.files import SECRET, can_read, can_write, not_own

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheOptions:
    """How much of what was computed is kept; 0 switches that part off."""

    disk_bytes: int = 4_000_000_000
    """Most bytes of files, for this and later processes; with 0 none is read either, nor what `ayaedge tune` found."""
    memory_bytes: int = 1_000_000_000
    """Most bytes in this process: of states if there are no files, three images of the 8B at the default; else of
    image embeddings, a quarter. Another quarter is for conversations that wait while another one goes on."""
    directory: Path | None = None
    """In which they get one named `ayaedge`; by default `cache_directory()`."""

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
        """The directory of all files; None if none are kept, or there is no place of this user's own for them."""
        place = self._place
        return None if place is None or not_own(place) else place

    @property
    def _place(self) -> Path | None:
        if not self.disk_bytes:
            return None
        return cache_directory() if self.directory is None else self.directory / _OWN

    def settled(self) -> CacheOptions:
        """The same with a directory that is there; with less, and one warning logged, where it cannot be written.

        What this user has put into one that can only be read is used. One that is not his alone is not touched.
        """
        if not self.disk_bytes or ((root := self.root) and can_write(root)):
            return self
        if root is not None:
            why = f"{root} cannot be written"
        elif (place := self._place) is not None:
            why = f"{place} is not used: {not_own(place)}"
        else:
            why = "this user has no home directory"
        logger.warning("nothing is kept for later processes: %s; %s", why, NAME_ANOTHER)
        return replace(self, disk_bytes=READ_ONLY if root and can_read(root / SECRET) else 0)


NO_CACHE = CacheOptions(disk_bytes=0, memory_bytes=0)
"""Nothing is kept beyond the last question: no file is written or read, not even what `ayaedge tune` found."""


def prepared_graphs(options: CacheOptions) -> PreparedGraphs | None:
    """Where prepared vision graphs are kept, if files are kept at all; they do not count as `disk_bytes`."""
    return PreparedGraphs(root / "vision") if (root := options.root) else None


def state_store(options: CacheOptions) -> StateStore:
    """The store of states that these options describe."""
    return (
        DiskStates(root, options.disk_bytes) if (root := options.root) else RecentArrays(options.memory_bytes)
    )


NAME_ANOTHER = "AYAEDGE_CACHE_DIR names another directory"
_OWN = "ayaedge"
"""Of the directory that is made in one that was named: other things in that are not ours to touch."""


def cache_directory() -> Path | None:
    """The user's directory: `ayaedge` in AYAEDGE_CACHE_DIR, or the one that the system provides for caches.

    States lie in it, prepared vision graphs in `vision`, measurements of this machine in `machine`, SHA-256 of files
    that were verified in `hashes`. None for a user without a home directory, as a container's may be.
    """
    if chosen := os.environ.get("AYAEDGE_CACHE_DIR"):
        return Path(chosen) / _OWN
    try:
        found = platformdirs.user_cache_dir(_OWN, appauthor=False)
    except (RuntimeError, ValueError, KeyError):  # as pathlib, Windows' variables and `pwd` say it
        return None
    return None if found.startswith("~") else Path(found)  # which nobody could replace
