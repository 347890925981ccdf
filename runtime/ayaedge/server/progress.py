"""How far the reading of a prompt is, from the model's thread to the client who waits."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ayaedge.hardware.speeds import Speeds
from ayaedge.images.tile_budget import TEXT_TOKENS

Step = Literal["loading", "waiting", "vision", "prefill"]


@dataclass(frozen=True)
class Progress:
    """What is being done before the first piece of an answer."""

    step: Step
    """The model is loaded; others are answered first; tiles of images are encoded; the prompt is decoded."""
    done: int = 0
    """Tiles or tokens, none of them for the first two steps."""
    of: int = 0
    seconds_left: float | None = None
    """To the first token; None where nothing is known of this machine's speed yet."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what is not known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Following:
    """What the model's thread has said about one request; all but calling it is for the event loop."""

    def __init__(self, speeds: Speeds | None, tokens_per_tile: int):
        self.last = Progress("waiting")
        self._speeds, self._tokens_per_tile = speeds, tokens_per_tile
        self._unsaid: deque[Progress] = deque()
        self._news, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._since, self._first = 0.0, 0

    def __call__(self, step: Literal["vision", "prefill"], done: int, of: int) -> None:
        self._loop.call_soon_threadsafe(self._hear, step, done, of, time.perf_counter())

    def take(self) -> list[Progress]:
        """What came since the last time, the oldest first."""
        found = list(self._unsaid)
        self._unsaid.clear()
        self._news.clear()
        return found

    async def news(self) -> None:
        """Wait until there is some."""
        await self._news.wait()

    def _hear(self, step: Literal["vision", "prefill"], done: int, of: int, now: float) -> None:
        if step != self.last.step:
            self._since, self._first = now, done
        self.last = Progress(step, done, of, self._seconds_left(step, done, of, now))
        self._unsaid.append(self.last)
        self._news.set()

    def _seconds_left(self, step: str, done: int, of: int, now: float) -> float | None:
        """By what this step has taken since it was heard of, and what was measured before for all else."""
        speeds, is_vision = self._speeds, step == "vision"
        if done > self._first:
            rate = (now - self._since) / (done - self._first)
        elif speeds is not None:
            rate = speeds.tile if is_vision else speeds.prefill(0, of) / of
        else:
            return None
        if is_vision and speeds is None:
            return None
        after = speeds.prefill(0, of * self._tokens_per_tile + TEXT_TOKENS) if is_vision and speeds else 0.0
        return round(rate * (of - done) + after, 2)
