"""A prompt that the decoder holds: what its answer says of it, and how long it took."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ayaedge.answers import Answer, Timings, Usage
from ayaedge.engine.dialogue import FittedPrompt
from ayaedge.engine.generation import Written
from ayaedge.engine.interface import Question
from ayaedge.errors import CancelledError


class Laps:
    """A clock that adds up the seconds of the steps of one answer."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._seconds = {"measurement": 0.0, "vision": 0.0, "prefill": 0.0}

    def end(self, step: str) -> None:
        """Count the time since the last step's end for this one."""
        now = time.perf_counter()
        self._seconds[step] += now - self._last
        self._last = now

    def timings(self, asked: float, first: float, prompt: ReadyPrompt) -> Timings:
        """Those of an answer that was asked for at one moment, and whose first token came at another."""
        return Timings(
            vision=self._seconds["vision"],
            prefill=self._seconds["prefill"],
            first_token=first - self._start - self._seconds["measurement"],
            decode=time.perf_counter() - first,
            predicted=prompt.predicted,
            queued=max(self._start - asked, 0.0),
            acceleration=prompt.kernel,
            acceleration_gain=prompt.gain,
        )


@dataclass(frozen=True)
class ReadyPrompt:
    """What is known of a question when its answer begins."""

    question: Question
    fitted: FittedPrompt
    cached: int
    """Tokens that were known before."""
    laps: Laps
    predicted: float | None
    """Seconds to the first token, as they were expected."""
    kernel: str
    gain: float
    """See `Timings.acceleration_gain`."""

    def answer(self, written: Written) -> Answer:
        """What the caller gets; CancelledError with it where that ended it."""
        timings = self.laps.timings(self.question.request.created, written.first, self)
        usage = self._usage(len(written.ids))
        answer = written.answer(usage, timings, self.question.options.response_format)
        if answer.stop_reason == "cancelled":
            raise CancelledError(answer)
        return answer

    def _usage(self, completion: int) -> Usage:
        fitted = self.fitted
        return Usage(
            prompt_tokens=len(fitted.prompt.ids),
            image_tokens=fitted.prompt.image_tokens,
            cached_tokens=self.cached,
            completion_tokens=completion,
            tiles=tuple(image.cost.tiles for image in fitted.images),
            images=tuple(image.cost for image in fitted.images),
            dropped_turns=fitted.dropped,
        )
