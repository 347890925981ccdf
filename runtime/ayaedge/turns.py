"""Who may use the model now: one answer at a time, and within it one step at a time.

Knows threads only. A step is a stretch of work inside llama.cpp or ONNX Runtime that must not be disturbed; between
two steps a model may be closed, or an answer that nobody will finish be given up.
"""

from __future__ import annotations

import os
import threading
import weakref

from ayaedge.errors import AyaEdgeError

_POLL = 0.2
"""Seconds after which a waiting thread looks whether the thread it waits for has died."""


class Turns:
    """The queue before one model."""

    def __init__(self) -> None:
        self.step = threading.RLock()
        """Held during every step, and while the model is closed."""
        self._changed = threading.Condition()
        self._holder: weakref.ref[object] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._process = os.getpid()

    def enter(self, answer: object) -> None:
        """Wait until `answer` may work; it keeps its turn until `leave`.

        Raises AyaEdgeError if the model is closed or was loaded by another process, if this thread itself has left
        another answer unfinished, or if `answer` has lost its turn to another one.
        """
        if os.getpid() != self._process:
            raise AyaEdgeError("this model was loaded before the process forked; load it in the new process")
        with self._changed:
            while not self._closed and self._current() not in (None, answer):
                if self._thread is threading.current_thread():
                    raise AyaEdgeError(
                        "this thread has an unfinished answer of the same model: finish or close it first"
                    )
                if self._thread is not None and not self._thread.is_alive():
                    break  # nobody finishes that answer
                self._changed.wait(_POLL)
            if self._closed:
                raise AyaEdgeError("this model is closed")
            self._holder, self._thread = weakref.ref(answer), threading.current_thread()

    def holds(self, answer: object) -> bool:
        """Whether it is the turn of `answer`."""
        return self._current() is answer

    def leave(self, answer: object) -> None:
        """End the turn of `answer`, if it has one."""
        with self._changed:
            if self._current() in (None, answer):
                self._holder = self._thread = None
                self._changed.notify_all()

    def close(self) -> None:
        """Refuse all further turns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _current(self) -> object | None:
        return self._holder() if self._holder else None
