"""An answer that is being written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from ayaedge.answers import StopReason
from ayaedge.engine.streams import AnswerRequest
from ayaedge.text.text_stream import Piece, TextStream, TokenLogprob


class _Writing:
    """An answer that is being written: its tokens, its text, and the moment of its first token."""

    def __init__(
        self, prefilled: float, request: AnswerRequest, stream: TextStream, stop: Sequence[int]
    ) -> None:
        self.first = prefilled
        self.ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self._text: list[str] = []
        self._request, self._stream, self._stop = request, stream, frozenset(stop)

    def follow(self, tokens: Iterator[tuple[int, TokenLogprob | None]]) -> StopReason:
        """Take tokens until the model ends its turn or a stop string comes; `length` if they end before."""
        for token, logprob in tokens:
            if not self.ids:
                self.first = time.perf_counter()
            self.ids.append(token)
            if token in self._stop:
                return "stop"
            self._add(self._stream.push(token, logprob))
            if self._stream.stopped:
                return "stop"
        return "length"

    def end(self) -> str:
        """Give out what is still held; returns the whole text."""
        if not self._stream.stopped:
            self._add(self._stream.finish())
        return "".join(self._text)

    @property
    def stopped(self) -> bool:
        """Whether a stop string came; of several that overlap it may show at the end only."""
        return self._stream.stopped

    def _add(self, piece: Piece | None) -> None:
        if piece is not None:
            self._text.append(piece)
            self.logprobs += piece.logprobs
            self._request.give(piece)
