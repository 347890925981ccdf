"""Running a command as a process of its own, with what it takes seen from outside: time to its output, memory."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ayaedge.errors import BackendError

_OWN_STATUS = Path("/proc/self/status")
"""Only Linux has it."""
_SAMPLE_EVERY = 0.02
_LINUX_UNIT = 1024
_LAST_WORDS = 2000


@dataclass(frozen=True)
class Resident:
    """Bytes of a process that are in memory."""

    total: int
    anonymous: int | None = None
    """What it has allocated; None where the system does not tell."""
    file: int | None = None
    """Pages of files that it maps: shared by all who map them, and the system can take them back."""


@dataclass(frozen=True)
class Finished:
    """A process that has ended well."""

    output: str
    """Of stdout."""
    first_output: float
    """Seconds from its start to its first byte on stdout."""
    seconds: float
    peak: Resident
    """The largest of each figure that was seen, perhaps at different times."""


def run_watched(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command to its end; BackendError with its last words if it fails."""
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=None if environment is None else dict(environment)
        ) as process:  # fmt: skip
            try:
                with _Sampler(process.pid) as sampler:
                    assert process.stdout is not None
                    first = process.stdout.read(1)
                    first_output = time.perf_counter() - started
                    output = first + process.stdout.read()
                    process.wait()
            except BaseException:
                process.kill()
                raise
        seconds = time.perf_counter() - started
        if process.returncode != 0:
            errors.seek(0)
            words = errors.read()[-_LAST_WORDS:].decode("utf-8", "replace").strip()
            raise BackendError(f"a process of the benchmark ended with status {process.returncode}: {words}")
    return Finished(output.decode("utf-8"), first_output, seconds, sampler.peak)


def resident(pid: int) -> Resident | None:
    """What a process has in memory now; None if it is gone."""
    if not _OWN_STATUS.is_file():
        return _ask(pid)
    try:
        return parse_status(_OWN_STATUS.parents[1].joinpath(str(pid), "status").read_text("utf-8"))
    except OSError:
        return None


def parse_status(text: str) -> Resident | None:
    """The figures in a text of the form of Linux's /proc/PID/status; None if it has none, as that of a dead process."""
    lines = (line.split() for line in text.splitlines() if line.startswith("Rss"))
    parts = {words[0]: int(words[1]) * _LINUX_UNIT for words in lines}
    if "RssAnon:" not in parts:
        return None
    anonymous, file = parts["RssAnon:"] + parts.get("RssShmem:", 0), parts.get("RssFile:", 0)
    return Resident(anonymous + file, anonymous, file)


class _Sampler:
    """Looks at a process again and again, on a thread of its own."""

    def __init__(self, pid: int) -> None:
        self.peak = Resident(0)
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            if (now := resident(self._pid)) is not None:
                self.peak = Resident(
                    max(self.peak.total, now.total),
                    _larger(self.peak.anonymous, now.anonymous),
                    _larger(self.peak.file, now.file),
                )
            self._over.wait(_SAMPLE_EVERY)


def _larger(first: int | None, second: int | None) -> int | None:
    found = [value for value in (first, second) if value is not None]
    return max(found, default=None)


def _ask(pid: int) -> Resident | None:
    import psutil

    try:
        return Resident(int(psutil.Process(pid).memory_info().rss))
    except psutil.Error:
        return None
