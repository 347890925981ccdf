"""The knapsack against trying everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayaedge_quant import allocation
from ayaedge_quant.allocation import Choice, allocate, bytes_of, loss_of
from ayaedge_quant.number_formats import GgmlType

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
            )
            for place, kind in enumerate(KINDS[:kinds])
        ]
    return items


def brute_force(items: dict[str, list[Choice]], budget: int) -> float:
    return min(loss_of(choices) for choices in product(*items.values()) if bytes_of(choices) <= budget)


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


def test_what_cannot_fit_is_an_error_with_both_figures() -> None:
    items = drawn_items(0, 3)
    least = sum(min(choice.nbytes for choice in choices) for choices in items.values())
    with pytest.raises(ValueError, match=f"{least:,} bytes"):
        allocate(items, least - 1)
    assert bytes_of(allocate(items, least).values()) == least
