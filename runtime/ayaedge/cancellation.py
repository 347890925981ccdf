"""A flag that ends work which another thread waits for, readable from C."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread, current_thread, main_thread
from typing import TypeVar

from ayaedge.errors import CancelledError

Result = TypeVar("Result")

_SLICE = 0.2
"""Seconds of waiting without a look at the signals that came: Windows interrupts no wait by itself."""


class Cancellation:
    """A flag that llama.cpp can read too, without Python: the first byte of `buffer` is 0 until it is set."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(2)
        self._ends: list[Callable[[], None]] = []

    def set(self) -> None:
        """Ask for an end."""
        self.buffer[0] = b"\x01"
        for end in tuple(self._ends):
            end()

    @property
    def is_set(self) -> bool:
        """Whether an end was asked for."""
        return bool(self.buffer[0] != b"\x00")

    def check(self) -> None:
        """Raise CancelledError if an end was asked for."""
        if self.is_set:
            raise CancelledError

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """Meanwhile call `end`, which must return at once, when an end is asked for: on the thread that asks."""
        self._ends.append(end)
        try:
            if self.is_set:  # perhaps before `end` was known
                end()
            yield
        finally:
            self._ends.remove(end)


def interruptible(work: Callable[[], Result], end: Callable[[], None]) -> Result:
    """What `work` gives, which stays in native code for long: `end` must end it soon, from another thread.

    Python tells the main thread of Ctrl-C only when it is back from native code, so that `work` is done on another
    thread then; KeyboardInterrupt is raised when it has ended.
    """
    if current_thread() is not main_thread():
        return work()
    done: Future[Result] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            done.set_exception(error)

    thread = Thread(target=run, name="ayaedge native", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_SLICE)
    except KeyboardInterrupt:
        end()
        thread.join()
        raise
    return done.result()
