"""Scores of an answerer on held-out questions, by task, language and grid.

An answerer is a function from samples to answers, so the same questions measure any runtime. An answer
counts if it equals the expected string. This module needs the standard library only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scenes import Sample

Answerer = Callable[["Sequence[Sample]"], list[str]]
"""Answers to samples, in their order."""


@dataclass(frozen=True)
class Score:
    """Right answers out of all."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / self.total

    def __str__(self) -> str:
        return f"{self.share:7.1%}  {self.right}/{self.total}"


@dataclass(frozen=True)
class Miss:
    """A wrong answer, with what it takes to look at it."""

    index: int
    language: str
    task: str
    grid: str
    size: tuple[int, int]
    question: str
    expected: str
    answer: str


@dataclass(frozen=True)
class Report:
    """Scores over all samples and by task, language and grid."""

    overall: Score
    by: dict[str, dict[str, Score]]
    misses: list[Miss]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: each score as its share with the two counts."""
        groups = {
            kind: {name: _plain(score) for name, score in scores.items()} for kind, scores in self.by.items()
        }
        return {"overall": _plain(self.overall), **groups, "misses": [asdict(miss) for miss in self.misses]}

    def as_table(self) -> str:
        """Aligned text, one score a line."""
        lines = [f"{'all':<10} {self.overall}"]
        for kind, scores in self.by.items():
            lines += ["", kind, *(f"  {name:<8} {score}" for name, score in scores.items())]
        return "\n".join(lines)


def _plain(score: Score) -> dict[str, float]:
    return {"share": round(score.share, 4), "right": score.right, "total": score.total}


def evaluate(samples: Sequence[Sample], answerer: Answerer) -> Report:
    """Ask all samples and compare the answers, character by character."""
    answers = answerer(samples)
    hits: dict[str, dict[str, list[bool]]] = {
        kind: defaultdict(list) for kind in ("task", "language", "grid")
    }
    misses = []
    for index, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
        hit = answer == sample.answer
        for kind, groups in hits.items():
            groups[getattr(sample, kind)].append(hit)
        if not hit:
            misses.append(
                Miss(
                    index,
                    sample.language,
                    sample.task,
                    sample.grid,
                    sample.picture.size,
                    sample.question,
                    sample.answer,
                    answer,
                )
            )
    by = {
        kind: {name: Score(sum(group), len(group)) for name, group in sorted(groups.items())}
        for kind, groups in hits.items()
    }
    return Report(Score(len(samples) - len(misses), len(samples)), by, misses)
