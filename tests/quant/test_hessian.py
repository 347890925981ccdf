"""Hessians against plain sums, and what is derived from them against the textbook."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_quant.hessian import Hessian, damped, feedback, spans, target_gain

FloatArray = NDArray[np.float32]
SUMMED = 2e-5
"""Relative error of float32 sums over some hundred positions."""


def activations(positions: int, columns: int, seed: int = 0) -> FloatArray:
    """Correlated columns of very different sizes, off centre."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((positions, columns)) @ rng.standard_normal((columns, columns))
    return (mixed * np.exp(rng.standard_normal(columns)) + 0.3).astype(np.float32)


def position_weights(positions: int, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).uniform(0, 2, positions).astype(np.float32)


def weighted_mean(left: FloatArray, right: FloatArray, weights: FloatArray) -> NDArray[np.float64]:
    """E[left right^T] in double precision."""
    products = np.einsum("p,pi,pj->ij", weights.astype(np.float64), left, right, optimize=True)
    return np.asarray(products / weights.astype(np.float64).sum())


def assert_near(found: NDArray[np.generic], expected: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=SUMMED * np.abs(expected).max())


def test_spans_cover_all_columns_and_the_last_may_be_narrower() -> None:
    assert spans(600, 256) == [slice(0, 256), slice(256, 512), slice(512, 600)]
    assert spans(256, 256) == [slice(0, 256)]
    assert spans(96, 256) == [slice(0, 96)]


def test_moments_are_weighted_means_over_all_parts_that_came() -> None:
    x, y, weights = activations(300, 40), activations(300, 40, seed=2), position_weights(300)
    hessian = Hessian(40, 16, targets=True)
    for part in (slice(0, 100), slice(100, 101), slice(101, 300)):
        hessian.add(x[part], weights[part], y[part])
    assert [span.stop - span.start for span in hessian.spans] == [16, 16, 8]
    for number, span in enumerate(hessian.spans):
        assert_near(hessian.inputs(number), weighted_mean(x[:, span], x[:, span], weights))
        targets = hessian.targets(number)
        assert targets is not None
        assert_near(targets, weighted_mean(y[:, span], x[:, span], weights))
    assert_near(hessian.mean_squares, np.diag(weighted_mean(x, x, weights)))
    assert hessian.mean_squares.shape == (hessian.columns,) == (40,)


def test_positions_without_weight_do_not_count() -> None:
    x, weights = activations(50, 32), np.ones(50, np.float32)
    weights[30:] = 0
    some, all_of_them = Hessian(32, 32), Hessian(32, 32)
    some.add(x[:30], weights[:30])
    all_of_them.add(x, weights)
    assert_near(all_of_them.inputs(0), some.inputs(0))


def test_without_targets_there_are_none() -> None:
    hessian = Hessian(32, 16)
    hessian.add(activations(10, 32), np.ones(10, np.float32))
    assert hessian.targets(0) is None


def test_the_loss_is_the_trace_within_the_blocks() -> None:
    x, weights = activations(200, 48), position_weights(200)
    hessian = Hessian(48, 32)
    hessian.add(x, weights)
    error = np.random.default_rng(3).standard_normal((7, 48)).astype(np.float32)
    expected = sum(
        np.trace(error[:, span] @ weighted_mean(x[:, span], x[:, span], weights) @ error[:, span].T)
        for span in hessian.spans
    )
    assert hessian.loss(error) == pytest.approx(expected, rel=1e-5)
    whole = Hessian(48, 48)
    whole.add(x, weights)
    products = x.astype(np.float64) @ error.T
    mean_square = (weights[:, None] * products**2).sum() / weights.sum(dtype=np.float64)
    assert whole.loss(error) == pytest.approx(mean_square, rel=1e-5)


@pytest.mark.parametrize("columns", [512, 256, 64, 600])
def test_moments_come_back_from_a_file_as_they_were(columns: int) -> None:
    hessian = Hessian(columns)
    hessian.add(activations(20, columns), position_weights(20))
    again = Hessian.from_arrays(hessian.to_arrays())
    assert again.spans == hessian.spans
    for number in range(len(hessian.spans)):
        assert np.array_equal(again.inputs(number), hessian.inputs(number))
    assert np.array_equal(again.mean_squares, hessian.mean_squares)


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e30])
def test_inputs_that_are_not_finite_are_refused(broken: float) -> None:
    x = activations(10, 48)
    x[7, 40] = broken
    with pytest.raises(ValueError, match="not finite"), np.errstate(over="ignore", invalid="ignore"):
        Hessian(48, 32).add(x, np.ones(10, np.float32))


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_feedback_is_the_upper_factor_of_the_inverse(damping: float) -> None:
    x = activations(400, 96)
    hessian = weighted_mean(x, x, position_weights(400))
    shifted = hessian + damping * np.diag(hessian).mean() * np.eye(96)
    upper = np.linalg.cholesky(np.linalg.inv(shifted)).T  # U^T U is the inverse
    expected = upper / np.diag(upper)[:, None]
    found = feedback(hessian, damping)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.array_equal(np.diag(found), np.ones(96))
    assert not np.tril(found, -1).any()


def test_inputs_that_are_always_zero_neither_give_nor_take() -> None:
    x = activations(100, 32)
    x[:, [4, 20]] = 0
    found = feedback(weighted_mean(x, x, np.ones(100, np.float32)))
    assert np.isfinite(found).all()
    for dead in (4, 20):
        assert np.array_equal(found[dead], np.eye(32)[dead])
        assert np.array_equal(found[:, dead], np.eye(32)[dead])
    assert np.array_equal(feedback(np.zeros((32, 32))), np.eye(32, dtype=np.float32))
    assert np.array_equal(damped(np.zeros((2, 2)), 0.01), np.eye(2))
    assert np.array_equal(target_gain(np.zeros((8, 8)), np.zeros((8, 8)), 0.1), np.eye(8))


@pytest.mark.parametrize("damping", [1e-6, 0.1])
def test_the_gain_solves_the_weighted_least_squares_problem(damping: float) -> None:
    rng = np.random.default_rng(4)
    y, position_weight = activations(500, 24), position_weights(500)
    x = (y + 0.3 * activations(500, 24, seed=5)).astype(np.float32)
    inputs, targets = (weighted_mean(left, x, position_weight) for left in (x, y))
    matrix = rng.standard_normal((6, 24))
    # min over V of E|W y - V x|^2 + load |W - V|^2
    root = np.sqrt(position_weight.astype(np.float64) / position_weight.astype(np.float64).sum())[:, None]
    load = np.sqrt(damping * np.diag(inputs).mean()) * np.eye(24)
    expected = np.linalg.lstsq(
        np.concatenate([root * x, load]), np.concatenate([root * (y @ matrix.T), load @ matrix.T]), rcond=None
    )[0].T
    np.testing.assert_allclose(matrix @ target_gain(inputs, targets, damping), expected, rtol=1e-6, atol=1e-8)


def test_equal_inputs_and_targets_change_nothing_and_damping_pulls_towards_that() -> None:
    x, y = activations(200, 16), activations(200, 16, seed=6)
    weights = np.ones(200, np.float32)
    same, other = weighted_mean(x, x, weights), weighted_mean(y, x, weights)
    np.testing.assert_allclose(target_gain(same, same, 0.1), np.eye(16), atol=1e-12)
    distances = [np.abs(target_gain(same, other, damping) - np.eye(16)).max() for damping in (0.01, 1, 1e4)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 1e-2
