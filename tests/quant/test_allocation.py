"""The knapsack against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayaedge_quant import allocation
from ayaedge_quant.allocation import Choice, allocate, bytes_of, loss_of, slow_of
from ayaedge_quant.ggml import GgmlType

KINDS = (GgmlType.IQ4_XS, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K, GgmlType.Q8_0)


def drawn_items(seed: int, tensors: int, kinds: int = 5) -> dict[str, list[Choice]]:
    """Losses that fall with the size roughly as quantization errors do, tensors of very different weight."""
    rng = np.random.default_rng(seed)
    items = {}
    for number in range(tensors):
        rows = int(rng.integers(1, 40))
        scale = float(np.exp(2 * rng.standard_normal()))
        items[f"blk.{number}"] = [
            Choice(
                kind,
                rows * kind.row_bytes(256),
                scale * float(np.exp(-1.4 * place + 0.3 * rng.standard_normal())),
                0 if kind is GgmlType.Q4_K else rows * 256,
            )
            for place, kind in enumerate(KINDS[:kinds])
        ]
    return items


def brute_force(items: dict[str, list[Choice]], budget: int, slow_limit: int | None = None) -> float:
    fitting = (
        loss_of(choices)
        for choices in product(*items.values())
        if bytes_of(choices) <= budget and (slow_limit is None or slow_of(choices) <= slow_limit)
    )
    return min(fitting)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), tensors=st.integers(1, 6), share=st.floats(0, 1))
def test_nothing_better_fits(seed: int, tensors: int, share: float) -> None:
    items = drawn_items(seed, tensors)
    least, most = (sum(f(c.nbytes for c in choices) for choices in items.values()) for f in (min, max))
    budget = least + int(share * (most - least))
    found = allocate(items, budget)
    assert list(found) == list(items)
    assert bytes_of(found.values()) <= budget
    assert loss_of(found.values()) == pytest.approx(brute_force(items, budget), rel=1e-9)


def test_thinning_costs_less_than_one_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "STATES", 64)
    for seed in range(20):
        items = drawn_items(seed, 6)
        budget = sum(choices[1].nbytes for choices in items.values()) * 11 // 10
        found = allocate(items, budget)
        assert bytes_of(found.values()) <= budget
        assert loss_of(found.values()) <= 1.01 * brute_force(items, budget)


def test_a_model_of_many_tensors_fills_its_budget() -> None:
    items = drawn_items(1, 225)
    budget = sum(choices[1].nbytes for choices in items.values()) * 11 // 10
    found = allocate(items, budget)
    assert 0.999 * budget < bytes_of(found.values()) <= budget


@pytest.mark.parametrize("seed", range(8))
def test_slow_weights_stay_within_their_limit(seed: int) -> None:
    items = drawn_items(seed, 6)
    budget = sum(choices[1].nbytes for choices in items.values()) * 11 // 10
    free = allocate(items, budget)
    limit = slow_of(free.values()) // 2
    found = allocate(items, budget, slow_limit=limit)
    assert slow_of(found.values()) <= limit
    assert bytes_of(found.values()) <= budget
    # a price for each slow weight finds the best allocations on the convex hull only
    assert loss_of(found.values()) <= 1.5 * brute_force(items, budget, limit)


def test_what_cannot_fit_is_an_error_with_both_figures() -> None:
    items = drawn_items(0, 3)
    least = sum(min(choice.nbytes for choice in choices) for choices in items.values())
    with pytest.raises(ValueError, match=f"{least:,} bytes"):
        allocate(items, least - 1)
    assert bytes_of(allocate(items, least).values()) == least


def test_a_limit_on_slow_weights_is_kept_where_nothing_is_lost() -> None:
    items = {"a": [Choice(GgmlType.Q4_K, 100, 0.0, 0), Choice(GgmlType.IQ4_XS, 80, 0.0, 9)]}
    assert slow_of(allocate(items, 100, slow_limit=4).values()) == 0


def test_a_limit_on_slow_weights_that_cannot_be_kept_is_an_error() -> None:
    items = {"a": [Choice(GgmlType.Q4_K, 100, 1.0, 5), Choice(GgmlType.Q5_K, 120, 0.5, 9)]}
    with pytest.raises(ValueError, match="slow"):
        allocate(items, 200, slow_limit=4)
    items = {"a": [Choice(GgmlType.Q4_K, 100, 1.0, 0), Choice(GgmlType.IQ4_XS, 80, 2.0, 9)]}
    with pytest.raises(ValueError, match="slow"):  # the fast type is too large
        allocate(items, 90, slow_limit=4)
