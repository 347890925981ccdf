"""Vision graphs as this machine's ONNX Runtime rearranged them, kept for the next start.

Most of the time that loading a graph takes goes into arranging its weights for the processor. The result is mapped
from a file at the next start: faster, and memory that the system can share and take back. It belongs to one processor
and one version of ONNX Runtime, so it is never part of a bundle. What an entry is the result of is decided in
`ayaedge.vision.encoder`, which names it by a key; here are files, their completeness, and how many are kept.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ayaedge.files import PARTIAL, can_write, forget_abandoned, matching, unfinished

logger = logging.getLogger(__name__)

GRAPH, DATA = "graph.onnx", "graph.data"
_FACTS = "complete.json"
_MOST = 3
"""Graphs that are kept; each takes twice the size of the bundle's."""
_ROOM = 1_000_000_000
"""Bytes that stay free on the disk."""


class PreparedGraphs:
    """A directory of prepared graphs. An entry appears at once and whole; a damaged one is replaced."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def find(self, key: str) -> Path | None:
        """The graph under `key`, or None."""
        entry = self.directory / key
        try:
            complete = json.loads((entry / _FACTS).read_text("utf-8")) == _facts(entry)
        except (OSError, ValueError):
            complete = False
        if not complete:
            return None
        with suppress(OSError):
            (entry / _FACTS).touch()
        return entry / GRAPH

    def make(self, key: str, size: int, write: Callable[[Path], None]) -> Path | None:
        """Let `write` put `GRAPH` and `DATA` into a directory, and keep them; None, with a message logged, if it fails.

        `size` is what they will take, in bytes; they are not written where less than that and a reserve is free.
        """
        if not can_write(self.directory.parent):  # which was said when the model was loaded
            return None
        partial = unfinished(self.directory / key)
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
            forget_abandoned(self.directory)
            partial.mkdir(mode=0o700)
            if shutil.disk_usage(partial).free < size + _ROOM:
                raise OSError(f"{size + _ROOM:,} bytes are needed on the disk")
            write(partial)
            (partial / _FACTS).write_text(json.dumps(_facts(partial)), "utf-8")
            if self.find(key) is None:  # else another process was faster
                self.forget(key)
                partial.rename(self.directory / key)
        except Exception as error:  # noqa: BLE001  whatever is wrong with the cache, the bundle itself can be loaded
            logger.warning("the vision graph could not be kept in %s: %s", self.directory, error)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for entry, _ in self.entries()[:-_MOST]:
            self.forget(entry.name)
        return self.find(key)

    def forget(self, key: str) -> None:
        """Remove an entry; a process that has mapped it goes on."""
        shutil.rmtree(self.directory / key, ignore_errors=True)

    def entries(self) -> list[tuple[Path, float]]:
        """Directories of all entries and when they were used (seconds since 1970), the least recent first."""
        found = []
        for facts in matching(self.directory, f"*/{_FACTS}"):
            with suppress(OSError):  # another process may have removed it
                if facts.parent.suffix == PARTIAL:
                    continue
                found.append((facts.parent, facts.stat().st_mtime))
        return sorted(found, key=lambda entry: entry[1])


def _facts(entry: Path) -> dict[str, list[int]]:
    """Size and time of the last change (ns) of both files."""
    stats = {name: (entry / name).stat() for name in (GRAPH, DATA)}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
