"""8-bit rounding of weights and activations, and the exactness of folding."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_quant.int8 import (
    GELU_ZERO_POINT,
    GROUP_MULTIPLE,
    SHIFT_BITS,
    SLAB_ROWS,
    SYMMETRIC_ZERO_POINT,
    ChannelSpread,
    Fold,
    balancing_fold,
    block_matmul,
    channel_order,
    column_energy,
    group_slices,
    integer_matmul,
    quantize_blocks,
    quantize_groups,
    quantize_rows,
    quantize_tokens,
    rounding_bias,
)

HALF_STEP = 0.5 + 1e-4
"""In steps; the excess is for the rounding of the division itself."""
ZERO_POINTS = pytest.mark.parametrize("zero_point", [SYMMETRIC_ZERO_POINT, GELU_ZERO_POINT])


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("outputs", [1, 7, SLAB_ROWS + 3])
def test_a_quantized_row_is_within_half_a_step_and_uses_the_full_range(outputs: int) -> None:
    weight = normal(outputs, 40) * np.exp(normal(outputs, 1, seed=1))
    codes, scales = quantize_rows(weight)
    assert codes.shape == (40, outputs)
    assert np.abs(codes.T - weight / scales[:, None]).max() <= HALF_STEP
    assert (np.abs(codes.astype(int)).max(0) == 127).all()


def test_a_row_of_zeros_stays_zero() -> None:
    codes, scales = quantize_rows(np.zeros((2, 5), np.float32))
    assert not codes.any()
    assert (scales == 1).all()


@pytest.mark.parametrize("inputs", [32, 50, 96])
def test_blocks_are_within_half_a_step_and_padded_with_zeros(inputs: int) -> None:
    weight = normal(5, inputs)
    codes, scales = quantize_blocks(weight, 32)
    blocks = -(-inputs // 32)
    assert codes.shape == (5, blocks, 32)
    restored = ((codes.astype(np.float32) - 128) * scales[:, :, None]).reshape(5, -1)
    assert (np.abs(restored[:, :inputs] - weight) <= HALF_STEP * np.repeat(scales, 32, 1)[:, :inputs]).all()
    assert not restored[:, inputs:].any()


@ZERO_POINTS
def test_a_quantized_token_is_within_half_a_step_and_not_clipped(zero_point: int) -> None:
    x = normal(9, 64) * np.exp(2 * normal(9, 1, seed=1))
    codes, step = quantize_tokens(x, zero_point)
    assert (np.abs((codes.astype(np.float32) - zero_point) - x / step) <= HALF_STEP).all()
    assert ((codes.min(1) == 0) | (codes.max(1) == 255)).all()


@ZERO_POINTS
def test_a_token_is_quantized_alike_in_any_company(zero_point: int) -> None:
    x = normal(6, 33)
    together, steps = quantize_tokens(x, zero_point)
    for row in range(len(x)):
        alone, step = quantize_tokens(x[row : row + 1], zero_point)
        assert np.array_equal(alone[0], together[row])
        assert step[0] == steps[row]


def test_a_token_of_zeros_becomes_the_zero_point() -> None:
    codes, _ = quantize_tokens(np.zeros((1, 8), np.float32), SYMMETRIC_ZERO_POINT)
    assert (codes == SYMMETRIC_ZERO_POINT).all()


def test_after_gelu_most_codes_serve_the_positive_side() -> None:
    x = np.maximum(3 * normal(20, 200), -0.17)
    steps = [quantize_tokens(x, zero_point)[1] for zero_point in (GELU_ZERO_POINT, SYMMETRIC_ZERO_POINT)]
    assert (steps[0] < 0.6 * steps[1]).all()


def test_products_of_integers_are_near_products_of_floats() -> None:
    x, weight = normal(4, 10, 300), normal(20, 300, seed=1)
    exact = x @ weight.T
    integers = integer_matmul(x, *quantize_rows(weight), zero_point=SYMMETRIC_ZERO_POINT)
    blocks = block_matmul(x, *quantize_blocks(weight, 32))
    for product in (integers, blocks):
        assert product.shape == exact.shape
        assert np.linalg.norm(product - exact) < 0.02 * np.linalg.norm(exact)


def test_blocks_stand_an_outlier_better_than_one_scale_for_the_token() -> None:
    x, weight = normal(30, 512), normal(20, 512, seed=1)
    x[np.arange(30), np.random.default_rng(2).integers(0, 512, 30)] = 60
    exact = x @ weight.T
    token = np.abs(integer_matmul(x, *quantize_rows(weight), zero_point=SYMMETRIC_ZERO_POINT) - exact)
    block = np.abs(block_matmul(x, *quantize_blocks(weight, 32)) - exact)
    assert block.mean() < 0.5 * token.mean()


def test_a_fold_between_two_linears_changes_nothing() -> None:
    x, first, second = normal(6, 8).astype(np.float64), normal(5, 8, seed=1), normal(7, 5, seed=2)
    bias_1, bias_2 = normal(5, seed=3), normal(7, seed=4)
    fold = Fold(scale=np.exp(normal(5, seed=5)), shift=normal(5, seed=6))
    inner = x @ fold.producer_weight(first).T + fold.producer_bias(bias_1)
    folded = inner @ fold.consumer_weight(second).T + fold.consumer_bias(bias_2, second)
    np.testing.assert_allclose(folded, (x @ first.T + bias_1) @ second.T + bias_2, rtol=1e-5, atol=1e-5)


def test_a_fold_of_a_norm_scales_and_shifts_its_channels() -> None:
    fold = Fold(scale=np.array([2, 4], np.float32), shift=np.array([1, -1], np.float32))
    assert fold.producer_weight(np.array([6, 8], np.float32)).tolist() == [3, 2]
    assert fold.producer_bias(np.array([5, 7], np.float32)).tolist() == [2, 2]


def spread_channels() -> NDArray[np.float32]:
    return normal(500, 12) * np.exp(normal(12, seed=1)) + 3 * normal(12, seed=2)


def test_the_energy_of_columns_is_that_of_all_weights_together() -> None:
    weights = [normal(rows, 12, seed=rows) for rows in (3, 9)]
    expected = np.square(np.concatenate(weights)).mean(0)
    np.testing.assert_allclose(column_energy(weights), expected, rtol=1e-5)


def test_the_spread_of_a_channel_lies_between_its_deviation_and_its_reach() -> None:
    x = spread_channels()
    seen, away = ChannelSpread.of(x), np.abs(x - x.mean(0))
    assert (seen.spread >= x.std(0)).all()
    assert (seen.spread <= away.max(0)).all()


def test_balancing_gives_columns_an_energy_in_proportion_to_the_spread() -> None:
    x, weight = spread_channels(), normal(9, 12, seed=3)
    fold = balancing_fold(ChannelSpread.of(x), column_energy([weight]))
    smooth = ChannelSpread.of((x - fold.shift) / fold.scale)
    assert (np.abs(smooth.mean) < smooth.spread / 2**SHIFT_BITS).all()
    ratio = smooth.spread / np.sqrt(column_energy([weight * fold.scale]))
    assert (ratio < 1.3).all()  # rounding to quarter powers of two
    assert (ratio > 1 / 1.3).all()


def with_outliers() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Each second channel has one large weight, of which the largest of a column tells and its energy not."""
    x, weight = normal(400, 64) * np.exp(normal(64, seed=1)), normal(96, 64, seed=2)
    weight[np.arange(32), 2 * np.arange(32)] = 12
    return x, weight


def product_error(x: NDArray[np.float32], weight: NDArray[np.float32], fold: Fold) -> float:
    smooth, bias = (
        (x - fold.shift) / fold.scale,
        fold.consumer_bias(np.zeros(len(weight), np.float32), weight),
    )
    codes, scales = quantize_rows(fold.consumer_weight(weight))
    product = integer_matmul(smooth, codes, scales, zero_point=SYMMETRIC_ZERO_POINT) + bias
    return float(np.linalg.norm(product - x @ weight.T))


def test_balancing_leaves_less_error_than_no_fold() -> None:
    x, weight = with_outliers()
    identity = Fold(np.ones(64, np.float32), np.zeros(64, np.float32))
    balancing = balancing_fold(ChannelSpread.of(x), column_energy([weight]))
    assert product_error(x, weight, balancing) < 0.8 * product_error(x, weight, identity)


def test_another_order_of_sums_gives_the_same_balance() -> None:
    x, weight = spread_channels(), normal(9, 12, seed=3)
    fold = balancing_fold(ChannelSpread.of(x), column_energy([weight]))
    nearly = balancing_fold(ChannelSpread.of(x * np.float32(1 + 1e-6)), column_energy([weight]))
    np.testing.assert_array_equal(fold.scale, nearly.scale)
    np.testing.assert_array_equal(fold.shift, nearly.shift)


def test_channels_that_never_move_are_balanced_without_dividing_by_zero() -> None:
    fold = balancing_fold(
        ChannelSpread.of(np.zeros((3, 2), np.float32)), column_energy([np.zeros((4, 2), np.float32)])
    )
    assert np.isfinite(fold.scale).all()
    assert (fold.scale > 0).all()


def test_the_rounding_bias_makes_the_product_with_the_centre_exact() -> None:
    weight, centre = normal(SLAB_ROWS + 3, 40), normal(40, seed=1)
    codes, scales = quantize_rows(weight)
    product = centre @ (codes * scales) + rounding_bias(weight, codes, scales, centre)
    np.testing.assert_allclose(product, weight @ centre, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 15, 16, 50, 100, 512, 4304])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_groups_cover_all_channels_in_multiples_and_none_is_empty(channels: int, groups: int) -> None:
    slices = group_slices(channels, groups)
    assert np.concatenate([np.arange(channels)[part] for part in slices]).tolist() == list(range(channels))
    assert len(slices) <= groups
    assert all(part.stop > part.start and part.start % GROUP_MULTIPLE == 0 for part in slices)
    if channels >= 2 * GROUP_MULTIPLE * groups:
        sizes = [part.stop - part.start for part in slices]
        assert len(sizes) == groups
        assert max(sizes) - min(sizes) <= 2 * GROUP_MULTIPLE


def test_channels_are_ordered_by_spread_and_then_by_number() -> None:
    spread = np.array([0, 1, 1.01, 8, 0.99, 8.1, 0.5], np.float32)
    order = channel_order(ChannelSpread(np.zeros(7, np.float32), spread))
    assert order.tolist() == [3, 5, 1, 2, 4, 6, 0]


def test_another_order_of_sums_gives_the_same_order_of_channels() -> None:
    x = normal(500, 300) * np.exp(normal(300, seed=1))
    order, nearly = (channel_order(ChannelSpread.of(y)) for y in (x, x * np.float32(1 + 1e-6)))
    assert (np.sort(order) == np.arange(300)).all()
    np.testing.assert_array_equal(order, nearly)


def grouped_error(x: NDArray[np.float32], weight: NDArray[np.float32], groups: int) -> float:
    bias = normal(len(weight), seed=5)
    grouped = quantize_groups(weight, bias, x.mean(0), groups)
    difference = grouped(x, zero_point=SYMMETRIC_ZERO_POINT) - (x @ weight.T + bias)
    return float(np.linalg.norm(difference))


def test_sorted_groups_leave_less_error_the_more_they_are() -> None:
    x, weight = normal(200, 256) * np.exp(1.5 * normal(256, seed=1)), normal(64, 256, seed=2)
    order = channel_order(ChannelSpread.of(x))
    errors = [grouped_error(x[:, order], weight[:, order], groups) for groups in (1, 2, 4)]
    assert errors[1] < 0.9 * errors[0]
    assert errors[2] < 0.9 * errors[1]
    assert errors[2] < grouped_error(x, weight, 4)  # as they stood


def test_one_group_is_a_linear_with_the_rounding_bias() -> None:
    x, weight, bias, centre = normal(5, 40), normal(7, 40, seed=1), normal(7, seed=2), normal(40, seed=3)
    codes, scales = quantize_rows(weight)
    expected = integer_matmul(x, codes, scales, zero_point=SYMMETRIC_ZERO_POINT)
    expected += bias + rounding_bias(weight, codes, scales, centre)
    grouped = quantize_groups(weight, bias, centre, 1)(x, zero_point=SYMMETRIC_ZERO_POINT)
    np.testing.assert_allclose(grouped, expected, rtol=1e-6, atol=1e-6)
