"""Ctrl-C, and other signals that end a program, as exceptions where they are expected, and nowhere else.

An exception of a signal can come between any two steps of Python, also inside what others wrote: an event loop that
is being set up, a progress bar that is being removed. Nobody can clean up after that.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_IMPATIENT = 3
"""Whoever presses so often without effect is heard everywhere: something hangs."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Interrupts:
    """While it is entered, Ctrl-C raises KeyboardInterrupt inside `expected` only, and once; before that it waits.

    Does nothing unless `enabled` and on the main thread, the only one that signals reach.
    """

    def __init__(self, *, enabled: bool = True):
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self._expected = self._raised = False
        self._pressed = 0
        self._previous: Any = None

    def __enter__(self) -> Interrupts:
        if self._enabled:
            self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled and self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Where a KeyboardInterrupt does no harm."""
        self._expected = True
        try:
            if self._pressed and not self._raised:
                self._raise()
            yield
        finally:
            self._expected = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._pressed += 1
        if (self._expected and not self._raised) or self._pressed > _IMPATIENT:
            self._raise()

    def _raise(self) -> None:
        self._raised = True
        raise KeyboardInterrupt


@contextmanager
def signals_deferred(on_signal: Callable[[], object]) -> Iterator[None]:
    """Signals that have a handler of Python call `on_signal` instead, and the handler at the end: that may raise."""
    came: list[int] = []
    handlers: dict[int, Any] = {}

    def defer(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        on_signal()

    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
        handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, defer)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            handlers[number](number, None)


def ignore_interrupts() -> None:
    """From now on Ctrl-C does nothing: for the end of a program, which must not be interrupted half-way."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
