"""Answers that are on their way: handles and streams, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from ayaedge.answers import Answer
from ayaedge.engine.worker import Request
from ayaedge.errors import AyaEdgeError
from ayaedge.text.text_stream import Piece

AnswerRequest = Request[Piece, Answer]


class AnswerHandle:
    """An answer on its way, for a caller who does something else meanwhile."""

    def __init__(self, request: AnswerRequest) -> None:
        self._request = request

    def cancel(self) -> None:
        """Stop: inside a tile, inside prefill or between two tokens. A finished answer stays as it is."""
        self._request.cancel()

    def done(self) -> bool:
        """Whether the answer is finished, cancelled or failed."""
        return self._request.over

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the whole answer; TimeoutError after `timeout` seconds, CancelledError, or what went wrong."""
        return self._request.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end; what went wrong, CancelledError, or None. TimeoutError after `timeout` seconds."""
        return self._request.exception(timeout)

    def add_done_callback(self, callback: Callable[[AnswerHandle], object]) -> None:
        """Call `callback(handle)` when the answer is done, or at once if it is; what it raises is logged.

        That is on the model's thread, or on the one that cancels an answer which still waits for its turn.
        """
        handle = AnswerHandle(self._request)  # not this object: dropping a stream shall cancel it

        def over() -> None:
            callback(handle)

        self._request.when_over(over)


class AnswerStream(AnswerHandle):
    """An answer as it comes: iterate over its pieces of text; `answer` is there when the last has come.

    A context manager; leaving it, `close()`, or dropping the stream before its end cancels the answer.
    """

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> Piece:
        piece = self._request.next_item()
        if piece is None:
            raise StopIteration
        return piece

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.cancel()

    def close(self) -> None:
        """Stop, and return when the model is ready for the next question."""
        self.cancel()
        with suppress(Exception):
            self._request.result()

    @property
    def answer(self) -> Answer:
        """The whole answer; AyaEdgeError while it is unfinished, or the error that ended it."""
        if not self._request.over:
            raise AyaEdgeError("the answer is not finished: iterate to the end first")
        return self._request.result()


class AsyncAnswerStream:
    """An answer as it comes, for asyncio: `async for piece in stream`, then `answer`.

    Cancelling the task that waits for it cancels the answer, and so do `aclose()` and dropping the stream.
    """

    def __init__(self, request: AnswerRequest) -> None:
        self._request = request

    def __aiter__(self) -> AsyncAnswerStream:
        return self

    async def __anext__(self) -> Piece:
        while True:
            await self._wait(lambda: not self._request.waiting)
            if (piece := self._request.take()) is not None:
                return piece
            if not self._request.waiting:  # else another task was quicker
                raise StopAsyncIteration

    def __del__(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Ask for an end; returns at once."""
        self._request.cancel()

    async def aclose(self) -> None:
        """Stop, and return when the model is ready for the next question."""
        self.cancel()
        with suppress(Exception):
            await self.whole()

    async def whole(self) -> Answer:
        """Wait for the whole answer."""
        await self._wait(lambda: self._request.over)
        return self._request.result()

    @property
    def answer(self) -> Answer:
        """The whole answer; AyaEdgeError while it is unfinished, or the error that ended it."""
        if not self._request.over:
            raise AyaEdgeError("the answer is not finished: iterate to the end first")
        return self._request.result()

    async def _wait(self, ready: Callable[[], bool]) -> None:
        import asyncio  # slow to load, and most programs do without

        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(news.set)

        with self._request.watched(wake):
            try:
                while not ready():
                    await news.wait()
                    news.clear()
            except asyncio.CancelledError:
                self.cancel()
                raise
