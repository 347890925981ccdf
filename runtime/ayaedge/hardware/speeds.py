"""How fast this machine runs a bundle."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Speeds:
    """Seconds that each step takes on this machine."""

    tile: float
    prompt_token: float
    """At the beginning of the context."""
    prompt_growth: float
    """More for each token that stands before: attention looks back."""
    answer_token: float
    answer_growth: float

    def prefill(self, start: int, count: int) -> float:
        """Seconds for `count` tokens behind `start` others.

        A few take as long as one of an answer: for both every weight is read once.
        """
        if not count:
            return 0.0
        computed = count * self.prompt_token + count * (start + count / 2) * self.prompt_growth
        return max(computed, self.answer(start, 1))

    def answer(self, start: int, count: int) -> float:
        """Seconds for `count` tokens of an answer behind a prompt of `start`."""
        return count * self.answer_token + count * (start + count / 2) * self.answer_growth
