"""The one file that says what was answered: a row of JSON a line, only ever appended to.

A line counts when it is whole. What a process that was killed had begun is taken away before the next line is
written, so that rows are never half and never joined.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ayaedge.checks import build
from ayaedge.errors import InvalidOptionError
from ayaedge.untrusted.json_text import parse_json

_LONGEST_LINE = 1 << 28
Identity = tuple[str | None, int | None, str | None, str]
"""Path, page, custom_id, and the work."""


@dataclass(frozen=True)
class BatchRow:
    """What came of one item."""

    path: str | None
    """The image's file, as it was named."""
    page: int | None
    custom_id: str | None
    sha256: str | None
    """Of the image's file, or of a request; None for a file that cannot be read."""
    fingerprint: str
    """Of everything else that an answer depends on: bundle, prompt, form, sampling, tiles."""
    prompt: str | None
    answer: str | None = None
    object: Any = None
    """What the answer's JSON says, if a form was asked for."""
    stop_reason: str | None = None
    usage: Any = None
    """Tokens and tiles."""
    seconds: float | None = None
    """Of work."""
    error: str | None = None
    attempts: int = 1
    same_as: str | None = None
    """The file whose answer this is, as both are the same."""
    completion: Any = None
    """The answer to a request, in OpenAI's form."""

    @property
    def work(self) -> str:
        """What was computed: the same work has the same answer."""
        return f"{self.sha256} {self.page} {self.fingerprint}"

    @property
    def identity(self) -> tuple[str | None, int | None, str | None, str]:
        """Which row it is: a later one with the same identity takes its place, unless that failed and this did not."""
        return (self.path, self.page, self.custom_id, self.work)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what there is."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Journal:
    """A file of rows, open for one batch at a time; a context manager. With no path, rows are kept nowhere.

    Raises InvalidOptionError for a file that is not one, and where another batch writes into it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._places: dict[Identity, tuple[int, bool]] = {}
        """Where a row begins, and whether it has an answer."""
        self._done: dict[str, int] = {}
        """Where a row of this work begins that has an answer."""
        if path is not None:
            self._open(path)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def find(self, identity: Identity) -> BatchRow | None:
        """The row of this identity that counts: one with an answer, or else the last one."""
        place = self._places.get(identity)
        return None if place is None else self._read(place[0])

    def find_work(self, work: str) -> BatchRow | None:
        """A row with an answer to the same work."""
        place = self._done.get(work)
        return None if place is None else self._read(place)

    def append(self, row: BatchRow) -> None:
        """Write a row, which is on the disk when this returns."""
        if self._file is None:
            return
        place = self._file.seek(0, os.SEEK_END)
        line = json.dumps(row.to_dict(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except BaseException:  # the disk is full: half a row is none
            self._file.truncate(place)
            raise
        self._note(row, place)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b", buffering=0)
        try:
            if not _lock(self._file):
                raise InvalidOptionError(
                    f"another batch writes into {path} now: wait for it, or name another file"
                )
            self._file.seek(0)
            self._read_all(path)
        except BaseException:
            self._file.close()
            raise

    def _read_all(self, path: Path) -> None:
        assert self._file is not None
        place = number = 0
        with path.open("rb") as lines:
            while line := lines.readline(_LONGEST_LINE):
                number += 1
                if not line.endswith(b"\n"):
                    self._file.truncate(place)
                    break
                try:
                    self._note(parse_row(line), place)
                except ValueError as error:
                    raise InvalidOptionError(
                        f"line {number} of {path} is no row of a batch ({error}): name another file"
                    ) from None
                place += len(line)

    def _note(self, row: BatchRow, place: int) -> None:
        answered = row.error is None
        if answered or not self._places.get(row.identity, (0, False))[1]:
            self._places[row.identity] = (place, answered)
        if answered:
            self._done.setdefault(row.work, place)

    def _read(self, place: int) -> BatchRow:
        assert self._path is not None
        with self._path.open("rb") as file:
            file.seek(place)
            return parse_row(file.readline(_LONGEST_LINE))


def parse_row(line: bytes) -> BatchRow:
    """The row that a line says; ValueError if it says none."""
    given = parse_json(line)
    if not isinstance(given, dict) or "fingerprint" not in given:
        raise ValueError("it has no fingerprint")
    anything = {name: given.pop(name) for name in ("object", "usage", "completion") if name in given}
    faults: list[str] = []
    empty = dict.fromkeys(("path", "page", "custom_id", "sha256", "prompt"))
    row = replace(build(BatchRow, {**empty, **given}, "", faults), **anything)
    if faults:
        raise ValueError("; ".join(faults[:3]))
    return row


def _lock(file: BinaryIO) -> bool:
    """Whether nobody else has it; true where the system cannot say."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # of a file system without locks
            return True
    return True
