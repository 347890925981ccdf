"""Probes: pieces of our own code in a process of their own, because what they try may end it.

Some kernels and graphics drivers end the process on some computers, where no error can be caught. A probe tries them
in a child, gives back what it found or says how it died, and what was learnt can be kept for this machine. What is
tried, and what follows from it, is decided elsewhere.

How such a child is started is said in `ayaedge.hardware.children`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ayaedge import errors
from ayaedge.errors import AyaEdgeError, BackendError
from ayaedge.files import can_read, write_private
from ayaedge.hardware.children import FAULTS, Child, resolve
from ayaedge.hardware.machine import processor
from ayaedge.untrusted.json_text import read_json

logger = logging.getLogger(__name__)

_MOST_BYTES = 1 << 16
"""Of a verdict."""

_known: dict[str, Result] = {}
"""What was learnt by this process and has no file."""


@dataclass(frozen=True)
class Result:
    """What a probe gave back, or how it died."""

    value: Any = None
    """Made of what JSON has."""
    death: str | None = None
    """`SIGSEGV`, `exit code 1`, `no answer within 60 s`; None if it did not die."""
    said: str = ""
    """The end of its stderr, if it died."""

    @property
    def lasts(self) -> bool:
        """Whether the same would happen again, by all that is known."""
        return self.death is None or self.death in FAULTS


class Probe:
    """A child that runs a function of a module with arguments that JSON has; a context manager that ends it.

    A generator is asked for one value after the other and waits in between; of any other function the result is the
    only value. Raises BackendError where no child can be started.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._late: float | None = None
        self._child = Child(
            serve, f"{function.__module__}:{function.__qualname__}", arguments, encoding="utf-8"
        )
        self._process = self._child.process
        self._write(self._child.opening)

    def __enter__(self) -> Probe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        self._child.close()

    def ask(self, seconds: float) -> Result:
        """The next value, within so many seconds. What ayaedge raises on purpose in the child is raised here."""
        timer = threading.Timer(seconds, self._end_late, [seconds])
        timer.daemon = True
        timer.start()
        try:
            self._write("\n")
            line = self._process.stdout.readline() if self._process.stdout else ""
        finally:
            timer.cancel()
        if not line.endswith("\n"):
            return Result(death=self._death(), said=self._child.said())
        answer = json.loads(line)
        if "error" in answer:
            raise _error(*answer["error"])
        return Result(answer["value"])

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # it has died: reading will tell
            if self._process.stdin:
                self._process.stdin.write(text)
                self._process.stdin.flush()

    def _end_late(self, seconds: float) -> None:
        self._late = seconds
        self._process.kill()

    def _death(self) -> str:
        death = self._child.death()
        return death if self._late is None else f"no answer within {self._late:g} s"


def probe(function: Callable[..., Any], *arguments: Any, seconds: float) -> Result:
    """The only or first value of a function that runs in a child; see `Probe`."""
    with Probe(function, *arguments) as child:
        return child.ask(seconds)


class Verdicts:
    """What is known of settings on this machine, with these versions of llama.cpp and ONNX Runtime.

    Kept in the directory's `machine`, which only its owner can read; without a directory, by this process alone.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory and directory / "machine"

    def recall(self, setting: str) -> Result | None:
        """What was learnt of a setting, with the value if that was kept; None if it was never tried."""
        key = _key(setting)
        if self._directory is None:
            return _known.get(key)
        try:
            entry = read_json(self._path(self._directory, key), most_bytes=_MOST_BYTES, links=False)
            return _result(entry["death"], entry["said"], entry.get("value"))
        except FileNotFoundError:
            return _known.get(key)
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("what is known of %s cannot be read and is not used: %s", setting, error)
            return _known.get(key)

    def remember(self, setting: str, result: Result, *, value: Any = None) -> None:
        """Keep what was learnt, unless it may be otherwise the next time; of values only `value`."""
        if not result.lasts:
            return
        key, kept = _key(setting), Result(value, result.death, result.said)
        try:
            if self._directory is None:
                raise FileNotFoundError("there is no directory")
            text = json.dumps({"setting": setting, **asdict(kept)})
            write_private(self._path(self._directory, key), text + "\n")
        except OSError as error:
            logger.info("what was learnt of %s is kept by this process alone: %s", setting, error)
            _known[key] = kept

    def settle(
        self,
        setting: str,
        function: Callable[..., Any],
        *arguments: Any,
        seconds: float,
        keeps_value: bool = False,
    ) -> Result:
        """What is known of a setting; if nothing is, a probe of `function` decides, and that is remembered.

        With its value if `keeps_value`.
        """
        found = self.recall(setting)
        if found is None:
            logger.info("%s was never tried on this machine: trying it in a process of its own", setting)
            found = probe(function, *arguments, seconds=seconds)
            self.remember(setting, found, value=found.value if keeps_value else None)
        return found

    def known(self, prefix: str) -> Iterator[tuple[str, Result]]:
        """Settings that begin so, with what is remembered of them on this machine as it is now."""
        if self._directory is None or not can_read(self._directory):
            return
        for path in sorted(self._directory.glob("verdict-*.json")):
            with suppress(OSError, ValueError, TypeError, KeyError):
                entry = read_json(path, most_bytes=_MOST_BYTES, links=False)
                setting = str(entry["setting"])
                if setting.startswith(prefix) and path.name == f"verdict-{_key(setting)}.json":
                    yield setting, _result(entry["death"], entry["said"], entry.get("value"))

    @staticmethod
    def _path(directory: Path, key: str) -> Path:
        return directory / f"verdict-{key}.json"


def _result(death: object, said: object, value: object) -> Result:
    """What was learnt, from parsed JSON; ValueError for what cannot have been. Whoever asks checks the value."""
    if not (death is None or isinstance(death, str)) or not isinstance(said, str):
        raise ValueError("it says neither that the trial went well nor how it died")
    return Result(value, death, said)


def serve(function: str, arguments: list[Any]) -> None:
    """Be the child: write a line of JSON for each value of `module:function` that is asked for on stdin."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as channel:
        os.dup2(2, 1)  # what libraries print must not come between
        values = _values(function, arguments)
        while sys.stdin.readline():
            answer: dict[str, Any]
            try:
                answer = {"value": next(values)}
            except StopIteration:
                return
            except AyaEdgeError as error:
                answer = {"error": [type(error).__name__, str(error)]}
            print(json.dumps(answer), file=channel, flush=True)


def _values(name: str, arguments: list[Any]) -> Iterator[Any]:
    result = resolve(name)(*arguments)
    if isinstance(result, Iterator):
        yield from result
    else:
        yield result


def _error(kind: str, message: str) -> AyaEdgeError:
    """The error that the child raised, of the class that it had there if that takes a message alone."""
    with suppress(TypeError):
        error = getattr(errors, kind, BackendError)(message)
        assert isinstance(error, AyaEdgeError)
        return error
    return BackendError(message)


def _key(setting: str) -> str:
    from ayaedge import llama, ort

    machine = processor()
    versions = (llama.imported().__version__, ort.library().__version__)
    facts = (setting, machine.name, sorted(machine.features), platform.machine(), versions)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
