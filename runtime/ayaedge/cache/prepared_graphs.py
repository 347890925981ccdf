"""Vision graphs as this machine's ONNX Runtime rearranged them, kept for the next start.

Most of the time that loading a graph takes goes into arranging its weights for the processor. The result is mapped
from a file at the next start: faster, and memory that the system can share and take back. It belongs to one processor
and one version of ONNX Runtime, so it is never part of a bundle. What an entry is the result of is decided in
`ayaedge.vision.encoder`, which names it by a key; here are files, their completeness, and how many are kept.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from ayaedge.cache.user_secret import is_marked, mark, user_secret
from ayaedge.cache.verified import FileHashes
from ayaedge.files import can_write, forget_abandoned, matching, replacing, unfinished
from ayaedge.untrusted.json_text import read_json
from ayaedge.untrusted.regular_file import open_regular

logger = logging.getLogger(__name__)

GRAPH, DATA = "graph.onnx", "graph.data"
_FACTS = "complete.json"
_MOST_FACTS = 1 << 12
"""Bytes of it."""
_NAME = re.compile(r"[0-9a-f]+")
_KIND = "prepared graph 1"
_MOST = 3
"""Graphs that are kept; each takes twice the size of the bundle's."""
_ROOM = 1_000_000_000
"""Bytes that stay free on the disk."""


class PreparedGraphs:
    """A directory of prepared graphs, in that of the cache. An entry appears at once and whole; a damaged one goes.

    Each carries the SHA-256 of its files and this user's mark; `hashes` knows the files that were read before.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.hashes = FileHashes(directory.parent)

    @cached_property
    def _secret(self) -> bytes | None:
        return user_secret(self.directory.parent)

    def find(self, key: str) -> Path | None:
        """The graph under `key`, or None; one that is not as it was written is removed, with a message logged."""
        entry = self.directory / key
        if not os.path.lexists(entry) or self._secret is None:
            return None
        try:
            self._check(entry, read_json(entry / _FACTS, most_bytes=_MOST_FACTS, links=False))
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("the prepared vision graph %s is damaged and was removed: %s", entry, error)
            self.forget(key)
            return None
        with suppress(OSError):
            (entry / _FACTS).touch()
        return entry / GRAPH

    def make(self, key: str, size: int, write: Callable[[Path], None]) -> Path | None:
        """Let `write` put `GRAPH` and `DATA` into a directory, and keep them; None, with a message logged, if it fails.

        `size` is what they will take, in bytes; they are not written where less than that and a reserve is free.
        """
        if not can_write(self.directory.parent) or self._secret is None:  # which was said before
            return None
        partial, found = unfinished(self.directory / key), None
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            forget_abandoned(self.directory)
            partial.mkdir(mode=0o700)
            if shutil.disk_usage(partial).free < size + _ROOM:
                raise OSError(f"{size + _ROOM:,} bytes are needed on the disk")
            write(partial)
            self._complete(partial, key)
            found = self.find(key)
            if found is None:  # else another process was faster
                self.forget(key)
                found = partial.rename(self.directory / key) / GRAPH
        except Exception as error:  # noqa: BLE001  whatever is wrong with the cache, the bundle itself can be loaded
            logger.warning("the vision graph could not be kept in %s: %s", self.directory, error)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for entry, _ in self.entries()[:-_MOST]:
            self.forget(entry.name)
        return found

    def forget(self, key: str) -> None:
        """Remove an entry; a process that has mapped it goes on."""
        shutil.rmtree(self.directory / key, ignore_errors=True)

    def entries(self) -> list[tuple[Path, float]]:
        """Directories of all entries and when they were used (seconds since 1970), the least recent first."""
        found = []
        for facts in matching(self.directory, f"*/{_FACTS}"):
            with suppress(OSError):  # another process may have removed it
                if _NAME.fullmatch(facts.parent.name):
                    found.append((facts.parent, facts.stat().st_mtime))
        return sorted(found, key=lambda entry: entry[1])

    def clear(self) -> None:
        """Remove all entries, whole or not, and nothing else."""
        forget_abandoned(self.directory, age=0)
        for entry in matching(self.directory, "*"):
            inside = {one.name for one in matching(entry, "*")}
            if _NAME.fullmatch(entry.name) and inside <= {GRAPH, DATA, _FACTS}:
                self.forget(entry.name)
        with suppress(OSError):  # missing, or there is something else in it
            self.directory.rmdir()

    def _complete(self, entry: Path, key: str) -> None:
        """Bring an entry's files to the disk, and only then say in it what they are."""
        assert self._secret is not None
        for name in (GRAPH, DATA):
            with (entry / name).open("rb+") as stream:
                os.fsync(stream.fileno())
        files = {name: _facts(entry / name, self.hashes) for name in (GRAPH, DATA)}
        facts = {"files": files, "mark": mark(self._secret, _KIND, key, _flat(files))}
        with replacing(entry / _FACTS, private=True, sync=True) as stream:
            stream.write(json.dumps(facts).encode())

    def _check(self, entry: Path, facts: Any) -> None:
        """Raise ValueError, TypeError or KeyError if an entry's files are not those that were written."""
        files, found = facts["files"], facts["mark"]
        if not isinstance(files, dict):
            raise TypeError("its list of files is none")
        if not is_marked(self._secret or b"", found, _KIND, entry.name, _flat(files)):
            raise ValueError("it was not written by this user, under this name")
        for name in (GRAPH, DATA):
            with open_regular(entry / name, links=False) as stream:
                status = os.fstat(stream.fileno())
            if [status.st_size, status.st_mtime_ns] != files[name][:2]:
                raise ValueError(f"{name} has changed")
            if _facts(entry / name, self.hashes) != files[name]:
                raise ValueError(f"the SHA-256 of {name} differs")


def _flat(files: dict[str, list[Any]]) -> tuple[Any, ...]:
    return tuple((name, *map(str, values)) for name, values in sorted(files.items()))


def _facts(path: Path, hashes: FileHashes) -> list[Any]:
    """Size, time of the last change (ns) and SHA-256 of a file."""
    stamp, sha256 = hashes.find(path)
    return [stamp.size, stamp.modified, sha256]
