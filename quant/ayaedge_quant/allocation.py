"""Which type each tensor gets, so that all of them fit into a number of bytes and lose least: a knapsack with choices.

Tensors and losses come from elsewhere; losses of tensors are taken to add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant.number_formats import GgmlType

STATES = 8192
"""Partial allocations that are kept: with fewer there is no rounding, and the result is the best one."""


class Choice(NamedTuple):
    """One way to store a tensor."""

    kind: GgmlType
    nbytes: int
    loss: float


def allocate(items: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """One choice for each tensor, at most `budget` bytes in all, with the least sum of losses.

    Exact while there are at most `STATES` undominated partial allocations; beyond that they are thinned out by size.
    Raises ValueError if nothing fits.
    """
    rest = sum(min(choice.nbytes for choice in choices) for choices in items.values())
    if rest > budget:
        raise ValueError(f"the smallest types need {rest:,} bytes, and {budget:,} are allowed")
    sizes, losses = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for choices in items.values():
        rest -= min(choice.nbytes for choice in choices)
        more = np.array([choice.nbytes for choice in choices], np.int64)
        cost = np.array([choice.loss for choice in choices])
        all_sizes, all_losses = (sizes[:, None] + more).ravel(), (losses[:, None] + cost).ravel()
        kept = _undominated(all_sizes, all_losses, budget - rest)
        sizes, losses = all_sizes[kept], all_losses[kept]
        steps.append(np.divmod(kept, len(choices)))
    state = len(sizes) - 1  # the largest of the undominated ones loses least
    chosen: dict[str, Choice] = {}
    for (name, choices), (parents, picks) in zip(reversed(list(items.items())), reversed(steps), strict=True):
        chosen[name] = choices[picks[state]]
        state = int(parents[state])
    return {name: chosen[name] for name in items}


def loss_of(choices: Iterable[Choice]) -> float:
    """Sum of the losses."""
    return sum(choice.loss for choice in choices)


def bytes_of(choices: Iterable[Choice]) -> int:
    """Sum of the sizes."""
    return sum(choice.nbytes for choice in choices)


def _undominated(sizes: NDArray[np.int64], losses: NDArray[np.float64], limit: int) -> NDArray[np.int64]:
    """Indices, by size, of what fits and loses less than all that is no larger; at most `STATES` of them."""
    order = np.lexsort((losses, sizes))
    order = order[sizes[order] <= limit]
    best_before = np.minimum.accumulate(losses[order])
    better = np.ones(len(order), bool)
    better[1:] = losses[order][1:] < best_before[:-1]
    kept = order[better]
    if len(kept) <= STATES:
        return kept
    # the last, which loses least, of each of STATES intervals of size; and the smallest, which always leads on
    interval = (sizes[kept] - sizes[kept[0]]) * STATES // (sizes[kept[-1]] - sizes[kept[0]] + 1)
    last = np.append(np.flatnonzero(np.diff(interval)), len(kept) - 1)
    return np.asarray(kept[np.unique(np.append(0, last))])
