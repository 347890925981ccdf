"""How alike two answers are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from ayaedge.errors import MissingExtraError


def equal_beginning(first: str, second: str) -> int:
    """Characters with which both begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def require_chrf() -> Any:
    """Metrics of sacrebleu; MissingExtraError without it."""
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise MissingExtraError("comparing answers by chrF", "benchmark") from error
    return metrics


def chrf(texts: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 of all texts together, 0 to 100: F-score of n-grams of characters, as sacrebleu has it by default."""
    return float(require_chrf().CHRF().corpus_score(list(texts), [list(references)]).score)


def chrf_signature() -> str:
    """What a figure of chrF is to be named with, so that others can be compared with it."""
    metric = require_chrf().CHRF()
    metric.corpus_score(["a"], [["a"]])  # the number of references is part of it
    return str(metric.get_signature())
