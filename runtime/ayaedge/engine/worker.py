"""One thread that does one request after the other, and what callers hold of a request.

Knows threads, order, cancelling and closing; what a request does is its own affair. A worker installs no signal
handlers, writes nothing and shares nothing with another worker.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

from ayaedge.cancellation import Cancellation
from ayaedge.errors import AyaEdgeError, BusyError, CancelledError, ClosedError, OutOfMemoryError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Item = TypeVar("Item")

_SLICE = 0.2
"""Seconds of waiting without a look at the signals that came: Windows interrupts no wait by itself."""


class Request(Generic[Item, Result]):
    """Work that waits for its turn, is being done, or is over; safe to use from any thread.

    It gives items on the way, to one reader, and a result or an error in the end.
    """

    def __init__(
        self,
        work: Callable[[Request[Item, Result]], Result] | None = None,
        listener: Callable[[Item], object] | None = None,
    ) -> None:
        """`listener` gets the items, on the worker's thread, instead of the reader. Without `work`, others do it."""
        self._listener = listener
        self.cancellation = Cancellation()
        self.created = time.perf_counter()
        self._work: Callable[[Request[Item, Result]], Result] | None = work
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._started = self._over = self._closing = False
        self._thread: threading.Thread | None = None
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._watchers: list[Callable[[], None]] = []

    def cancel(self) -> None:
        """Ask for an end: inside a tile, inside prefill or between two tokens; nothing happens if it is over."""
        with self._changed:
            if self._over:
                return
            self.cancellation.set()
            waits = not self._started
        if waits:
            self.end(None, ClosedError() if self._closing else CancelledError())

    def abandon(self) -> None:
        """Cancel, because the model is being closed."""
        self._closing = True
        self.cancel()

    @property
    def over(self) -> bool:
        """Whether there is a result or an error."""
        return self._over

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the result, or raise the request's error; TimeoutError after `timeout` seconds.

        KeyboardInterrupt while waiting cancels the request.
        """
        self.exception(timeout)
        self._raise_error()
        return self._result  # type: ignore[return-value]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; the request's error, or None. TimeoutError after `timeout` seconds."""
        if not self._wait(lambda: self._over, timeout):
            raise TimeoutError(f"the request is not finished after {timeout} seconds")
        return self._error

    def next_item(self) -> Item | None:
        """Wait for the next item; None when there are no more, or the error that ended the request."""
        while True:
            self._wait(lambda: bool(self._items) or self._over, None)
            if (item := self.take()) is not None or not self.waiting:  # another reader may have been quicker
                return item

    def take(self) -> Item | None:
        """The next item if it is there, else None or the error that ended the request."""
        with self._changed:
            if self._items:
                return self._items.popleft()
        self._raise_error()
        return None

    @property
    def waiting(self) -> bool:
        """Whether `take` would give nothing only because nothing has come yet."""
        with self._changed:
            return not self._items and not self._over

    def give(self, item: Item) -> None:
        """Hand an item to the listener or the reader; called by the work."""
        if self._listener is not None:
            self._listener(item)
            return
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()
            watchers = list(self._watchers)
        _call_all(watchers)

    @contextmanager
    def watched(self, watcher: Callable[[], None]) -> Iterator[None]:
        """Meanwhile call `watcher`, on another thread, whenever an item or the end has come."""
        with self._changed:
            self._watchers.append(watcher)
        try:
            yield
        finally:
            with self._changed:
                self._watchers.remove(watcher)

    def when_over(self, callback: Callable[[], None]) -> None:
        """Call `callback` when there is a result or an error, or at once if there is; its own errors are logged.

        That is on the worker's thread, or on the one that cancels a request which still waits.
        """
        with self._changed:
            if not self._over:
                self._callbacks.append(callback)
                return
        _call_all([callback])

    def belongs_to(self, thread: threading.Thread) -> None:
        """Note whose work this is: that thread must not wait for it."""
        self._thread = thread

    def start(self) -> bool:
        """Note that the work begins; False if it was cancelled before."""
        with self._changed:
            self._started = self._started or not self._over
            return not self._over

    def run(self) -> None:
        """Do the work, unless it was cancelled before; called by the worker."""
        if not self.start():
            return
        work, self._work = self._work, None  # what it holds is free when it is done
        result: Result | None = None
        error: BaseException | None = None
        try:
            if work is not None:
                result = work(self)
        except BaseException as caught:  # noqa: BLE001 - it is raised where the result is asked for
            error = caught
        del work
        if error is not None:
            self.fail(error)
        else:
            self.end(result, None)

    def fail(self, error: BaseException) -> None:
        """Finish with what ended the work."""
        if isinstance(error, CancelledError) and self._closing:
            error = ClosedError()
        elif isinstance(error, MemoryError) and not isinstance(error, AyaEdgeError):
            error = OutOfMemoryError("there is not memory enough")
        traceback.clear_frames(error.__traceback__)  # images must not live as long as their error
        self.end(None, error)

    def end(self, result: Result | None, error: BaseException | None) -> None:
        """Finish with a result or an error; the first end counts."""
        with self._changed:
            if self._over:
                return
            self._result, self._error, self._over, self._work = result, error, True, None
            self._trace = error.__traceback__ if error is not None else None
            callbacks, self._callbacks = self._callbacks + self._watchers, []
            self._changed.notify_all()
        _call_all(callbacks)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(self._trace)  # not longer each time

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        if self._thread is threading.current_thread() and not ready():
            raise AyaEdgeError(
                "a callback runs on the model's own thread and cannot wait for it: use submit() there"
            )
        end = None if timeout is None else time.monotonic() + timeout
        try:
            with self._changed:
                while not ready():
                    left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
                    if left <= 0:
                        return False
                    self._changed.wait(left)
            return True
        except KeyboardInterrupt:
            self.cancel()
            with self._changed:
                self._changed.wait_for(lambda: self._over)  # at once; a second Ctrl-C does not wait
            raise


def _call_all(callbacks: Iterable[Callable[[], None]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except BaseException:
            logger.warning("a callback of a request failed", exc_info=True)


class Worker:
    """A thread with a bounded queue before it.

    `free` is called on that thread when it ends, as its last work; `hurry` on the one that asks it to end.
    """

    def __init__(
        self, name: str, queue_size: int, free: Callable[[], None], hurry: Callable[[], None] | None = None
    ) -> None:
        self._limit, self._free, self._hurry = queue_size, free, hurry or _nothing
        self._changed = threading.Condition()
        self._queue: deque[Request[Any, Any]] = deque()
        self._current: Request[Any, Any] | None = None
        self._closed = False
        self._process = os.getpid()
        # a daemon, so that the interpreter's exit does not wait for it before it is told to end
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def submit(self, request: Request[Item, Result]) -> Request[Item, Result]:
        """Put a request at the end of the queue; ClosedError or BusyError if that is not possible."""
        if os.getpid() != self._process:
            raise ClosedError("this model was loaded before the process forked; load it in the new process")
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._queue) >= self._limit:
                self._queue = deque(waiting for waiting in self._queue if not waiting.over)
            if len(self._queue) >= self._limit:
                raise BusyError(
                    f"{len(self._queue)} requests wait already: ask again later, or load the model with a larger "
                    "queue_size"
                )
            self.adopt(request)
            self._queue.append(request)
            self._changed.notify_all()
        return request

    def adopt(self, request: Request[Any, Any]) -> None:
        """Note that this thread will do a request's work, though it is not in the queue."""
        request.belongs_to(self._thread)

    @property
    def is_wanted(self) -> bool:
        """Whether a request waits for the one that is being done. Safe on any thread."""
        return bool(self._queue)

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is the worker's own thread: in a callback."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Cancel everything and end the thread; returns when it has ended, in a callback at once. Safe at any time."""
        self.abandon()
        if os.getpid() == self._process and not self.is_current_thread:
            try:
                self._thread.join()
            except KeyboardInterrupt:  # weights that are being freed while the process ends would abort it
                self._thread.join()
                raise
            atexit.unregister(self.close)

    def abandon(self) -> None:
        """Cancel everything and let the thread end, without waiting for it: safe wherever garbage is collected."""
        if os.getpid() != self._process:
            return  # the thread is another process's, and may have held the lock when it forked
        with self._changed:
            self._closed = True
            current = self._current
            self._changed.notify_all()
        self._hurry()
        if current is not None:
            current.abandon()

    def _loop(self) -> None:
        try:
            while (request := self._next()) is not None:
                request.run()
                with self._changed:
                    self._current = None
                del request  # and with it, perhaps, the last reference to the model
        finally:
            with self._changed:
                self._closed = True
                left, self._queue = self._queue, deque()
            for waiting in left:
                waiting.end(None, ClosedError())
            free, self._free, self._hurry = self._free, _nothing, _nothing
            free()

    def _next(self) -> Request[Any, Any] | None:
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._current = self._queue.popleft()
            return self._current


def _nothing() -> None: ...
