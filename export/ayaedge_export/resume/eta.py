"""The ETA of a long computation, from how long its finished steps took. Knows nothing of what the steps are."""

from __future__ import annotations

import time
from collections.abc import Callable


class Eta:
    """Names steps, with the time that is left once two of them are known and it is a minute or more."""

    def __init__(self, total: float, clock: Callable[[], float] = time.monotonic):
        """`total` is the work of all steps, in any unit."""
        self._total, self._clock = total, clock
        self._first: tuple[float, float] | None = None

    def label(self, step: str, finished: float) -> str:
        """`step`, and about how long the rest takes when so much of the work is finished."""
        now = self._clock()
        if self._first is None:  # a run that goes on does not know what came before
            self._first = now, finished
        started, before = self._first
        if finished <= before:
            return step
        seconds = (self._total - finished) * (now - started) / (finished - before)
        return step if seconds < 60 else f"{step}, {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
