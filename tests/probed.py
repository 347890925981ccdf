"""What the tests of probes let run in a child: functions that answer, wait, fail and die."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from ayaedge import BackendError, BundleError


def add(first: int, second: int) -> int:
    return first + second


def count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


def die(name: str, words: str = "") -> None:
    """By a signal, after saying something; the library's output goes to the same place."""
    sys.stderr.write(words)
    sys.stderr.flush()
    os.kill(os.getpid(), signal.Signals[name])


def die_the_second_time(name: str) -> Iterator[int]:
    yield 1
    die(name)


def read_nothing() -> int:
    """A real access to no memory."""
    return ctypes.string_at(0)[0]


def leave(code: int) -> None:
    os._exit(code)


def fail() -> None:
    raise RuntimeError("there is no such thing")


def refuse(kind: str) -> None:
    raise {"BackendError": BackendError, "BundleError": BundleError}[kind]("it does not go")


def hang() -> None:
    time.sleep(3600)


def talk() -> str:
    """Print as libraries do, from Python and below it."""
    sys.stdout.write("from Python")
    ctypes.CDLL(None).puts(b"from C")
    ctypes.CDLL(None).fflush(None)
    return "the answer"


def surroundings() -> dict[str, Any]:
    return {"pid": os.getpid(), "main": getattr(sys.modules["__main__"], "__file__", None), "path": sys.path}


def die_with_repacking(directory: str, options: dict[str, Any], *more: Any) -> None:
    assert options["repack"]
    die("SIGILL", "tilezero")


def refuse_repacking(directory: str, options: dict[str, Any]) -> None:
    refuse("BundleError")


def measure_until_repacking_dies(
    directory: str, options: dict[str, Any], sample: int
) -> Iterator[list[float]]:
    """Repacked weights are the fastest, until the last round."""
    yield []
    yield [0.001, 0.001] if options["repack"] else [0.002, 0.002]
    if options["repack"]:
        die("SIGSEGV")
    while True:
        yield [0.002, 0.002]
