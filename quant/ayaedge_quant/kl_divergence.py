"""How far apart two sets of logits are: the numpy twin of quant/kernels/divergence.cpp."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class KlDivergence(NamedTuple):
    """One value for each compared position."""

    kl: NDArray[np.float64]
    """KL(softmax(reference) || softmax(candidate)) in nats, (rows,)."""
    same_top: NDArray[np.bool_]
    """Whether both rows have their largest logit at the same token, (rows,)."""


def kl_divergence(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> KlDivergence:
    """KL divergence and top-1 agreement of logits (rows, vocabulary), log-softmax in double precision."""
    check_pair(reference, candidate)
    log_p, log_q = _log_softmax(reference), _log_softmax(candidate)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return KlDivergence(terms.sum(axis=1), reference.argmax(axis=1) == candidate.argmax(axis=1))


class RunningKlDivergence:
    """KL divergence of logits that come a part of the vocabulary at a time, for tables that never exist as a whole."""

    def __init__(self, rows: int):
        # of the reference: largest logit, and sums of exp(logit - largest), without and with the difference as weight
        self._top, self._sum, self._weighed = np.full(rows, -np.inf), np.zeros(rows), np.zeros(rows)
        self._other_top, self._other_sum = np.full(rows, -np.inf), np.zeros(rows)

    def add(self, reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> None:
        """Add logits (rows, part) of both for the next tokens."""
        check_pair(reference, candidate)
        p, q = reference.astype(np.float64), candidate.astype(np.float64)
        top, other_top = np.maximum(self._top, p.max(1)), np.maximum(self._other_top, q.max(1))
        shrunk = np.exp(self._top - top)
        weights = np.exp(p - top[:, None])
        self._sum = self._sum * shrunk + weights.sum(1)
        self._weighed = self._weighed * shrunk + (weights * (p - q)).sum(1)
        self._other_sum = self._other_sum * np.exp(self._other_top - other_top) + np.exp(
            q - other_top[:, None]
        ).sum(1)
        self._top, self._other_top = top, other_top

    def result(self) -> NDArray[np.float64]:
        """KL(softmax(reference) || softmax(candidate)) in nats, (rows,)."""
        partitions = self._top + np.log(self._sum) - self._other_top - np.log(self._other_sum)
        return np.asarray(self._weighed / self._sum - partitions)


def check_pair(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> None:
    """Raise ValueError unless both are logits of the same rows over the same vocabulary."""
    if reference.ndim != 2 or reference.shape != candidate.shape or reference.shape[1] == 0:
        raise ValueError(
            "logits must be two arrays of the same shape (rows, vocabulary), "
            f"got {reference.shape} and {candidate.shape}"
        )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
