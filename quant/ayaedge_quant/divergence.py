"""How far apart two sets of logits are: the numpy twin of quant/kernels/divergence.cpp."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Divergence(NamedTuple):
    """One value for each compared position."""

    kl: NDArray[np.float64]
    """KL(softmax(reference) || softmax(candidate)) in nats, (rows,)."""
    same_top: NDArray[np.bool_]
    """Whether both rows have their largest logit at the same token, (rows,)."""


def divergence(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> Divergence:
    """KL divergence and top-1 agreement of logits (rows, vocabulary), log-softmax in double precision."""
    check_pair(reference, candidate)
    log_p, log_q = _log_softmax(reference), _log_softmax(candidate)
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(p > 0, p * (log_p - log_q), 0.0)
    return Divergence(terms.sum(axis=1), reference.argmax(axis=1) == candidate.argmax(axis=1))


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
