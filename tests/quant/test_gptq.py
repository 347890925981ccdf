"""Encoding with error feedback: what it is made of, and what it is worth."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_quant import hessian as hessians
from ayaedge_quant import number_formats
from ayaedge_quant.blocks import CODES, SUPER_BLOCK
from ayaedge_quant.gptq import TARGET_DAMPING, GptqEncoder, processing_order
from ayaedge_quant.gptq_sweep import sweep
from ayaedge_quant.hessian import Hessian
from ayaedge_quant.number_formats import GgmlType, decode, encode

FloatArray = NDArray[np.float32]
COLUMNS, POSITIONS = 512, 800
OTHERS = (GgmlType.Q8_0, GgmlType.F16)
kinds = pytest.mark.parametrize("kind", list(CODES))


@cache
def activations() -> FloatArray:
    """Of few directions and very different sizes, as a layer's inputs are."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((COLUMNS // 8, COLUMNS)) * np.exp(rng.standard_normal(COLUMNS))
    mixed = rng.standard_normal((POSITIONS, len(directions))) @ directions
    return (mixed + 0.5 * rng.standard_normal(mixed.shape)).astype(np.float32)


@cache
def drifted() -> FloatArray:
    """What arrives instead of them behind layers that were rounded: a systematic error, and some noise."""
    rng = np.random.default_rng(8)
    mixing = np.eye(COLUMNS) + 0.03 * rng.standard_normal((COLUMNS, COLUMNS)) / np.sqrt(COLUMNS / 16)
    return (activations() @ mixing + 0.1 * rng.standard_normal((POSITIONS, COLUMNS))).astype(np.float32)


def weights(rows: int = 48) -> FloatArray:
    return (0.02 * np.random.default_rng(5).standard_t(4, (rows, COLUMNS))).astype(np.float32)


def position_weights() -> FloatArray:
    return np.random.default_rng(6).uniform(0.2, 1, POSITIONS).astype(np.float32)


def hessian_of(x: FloatArray, targets: FloatArray | None = None, block: int = 256) -> Hessian:
    hessian = Hessian(x.shape[1], block, targets=targets is not None)
    hessian.add(x, position_weights(), targets)
    return hessian


def product_error(blocks: NDArray[np.uint8], kind: GgmlType, x: FloatArray, y: FloatArray) -> float:
    """Weighted mean of |W y - Wq x|^2."""
    missed = y.astype(np.float64) @ weights().T - x.astype(np.float64) @ decode(blocks, kind).T
    return float((position_weights()[:, None] * missed**2).sum() / position_weights().sum())


def test_columns_come_by_falling_importance_within_each_super_block() -> None:
    importance = np.random.default_rng(0).integers(0, 50, 600).astype(np.float32)
    order = processing_order(importance)
    assert order.dtype == np.int32
    for start in range(0, 600, SUPER_BLOCK):
        part = order[start : start + SUPER_BLOCK]
        assert sorted(part) == list(range(start, min(start + SUPER_BLOCK, 600)))
        assert (np.diff(importance[part]) <= 0).all()
        equal = np.diff(importance[part]) == 0
        assert (np.diff(part)[equal] > 0).all()


@kinds
@pytest.mark.parametrize("with_targets", [False, True])
def test_blocks_are_those_of_the_oracle(kind: GgmlType, with_targets: bool) -> None:
    y = activations()
    x = drifted() if with_targets else y
    hessian = hessian_of(x, y if with_targets else None)
    parts = []
    for number, span in enumerate(hessian.spans):
        wanted, targets = weights()[:, span], hessian.targets(number)
        if targets is not None:
            gain = hessians.target_gain(hessian.inputs(number), targets, TARGET_DAMPING)
            wanted = wanted @ gain.astype(np.float32)
        importance = np.ascontiguousarray(hessian.mean_squares[span])
        order = processing_order(importance)
        feedback = hessians.feedback(hessian.inputs(number)[np.ix_(order, order)])
        parts.append(sweep(np.ascontiguousarray(wanted), kind, feedback, importance, order=order))
    found = GptqEncoder(hessian).encode(weights(), kind)
    assert np.array_equal(found, np.concatenate(parts, axis=1))


@kinds
@pytest.mark.parametrize("block", [256, 512])
def test_the_weighted_loss_is_far_below_the_plain_encoders(kind: GgmlType, block: int) -> None:
    hessian = hessian_of(activations(), block=block)
    gptq = GptqEncoder(hessian)
    fed_back, plain = (
        hessian.loss(decode(blocks, kind) - weights())
        for blocks in (gptq.encode(weights(), kind), encode(weights(), kind, gptq.importance))
    )
    assert fed_back < 0.6 * plain


def test_a_wider_block_loses_less() -> None:
    x, kind = activations(), GgmlType.Q4_K
    losses = [
        product_error(GptqEncoder(hessian_of(x, block=block)).encode(weights(), kind), kind, x, x)
        for block in (256, 512)
    ]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("kind", [*CODES, *OTHERS])
def test_targets_bring_the_product_nearer_to_the_exact_models(kind: GgmlType) -> None:
    y = activations()
    x = drifted()
    without, aimed = (
        product_error(GptqEncoder(hessian_of(x, targets)).encode(weights(), kind), kind, x, y)
        for targets in (None, y)
    )
    assert aimed < 0.9 * without


@kinds
def test_spans_are_independent_of_each_other(kind: GgmlType) -> None:
    x = activations()
    whole = GptqEncoder(hessian_of(x)).encode(weights(), kind)
    halves = [
        GptqEncoder(hessian_of(np.ascontiguousarray(x[:, span]))).encode(weights()[:, span], kind)
        for span in (slice(0, 256), slice(256, 512))
    ]
    assert np.array_equal(whole, np.concatenate(halves, axis=1))
    joined = GptqEncoder(hessian_of(x, block=512)).encode(weights(), kind)
    assert not np.array_equal(joined, whole)


@pytest.mark.parametrize("kind", OTHERS)
def test_types_without_error_feedback_are_ggmls(kind: GgmlType) -> None:
    y = activations()
    plain = GptqEncoder(hessian_of(y))
    assert np.array_equal(plain.encode(weights(), kind), encode(weights(), kind, plain.importance))
    hessian = hessian_of(drifted(), y)
    aimed = []
    for number, span in enumerate(hessian.spans):
        targets = hessian.targets(number)
        assert targets is not None
        gain = hessians.target_gain(hessian.inputs(number), targets, TARGET_DAMPING)
        aimed.append(weights()[:, span] @ gain.astype(np.float32))
    expected = encode(np.concatenate(aimed, axis=1), kind, hessian.mean_squares)
    assert np.array_equal(GptqEncoder(hessian).encode(weights(), kind), expected)


def test_a_type_with_small_blocks_takes_rows_of_any_width() -> None:
    x = activations()[:, :96]
    gptq = GptqEncoder(hessian_of(x))
    narrow = np.ascontiguousarray(weights()[:, :96])
    expected = encode(narrow, GgmlType.Q5_0, gptq.importance)
    assert np.array_equal(gptq.encode(narrow, GgmlType.Q5_0), expected)


@kinds
def test_inputs_that_are_always_zero_do_no_harm(kind: GgmlType) -> None:
    x = activations().copy()
    x[:, 256:] = 0
    x[:, 40:50] = 0
    gptq = GptqEncoder(hessian_of(x))
    rounded = decode(gptq.encode(weights(), kind), kind)
    assert np.isfinite(rounded).all()
    plain = decode(encode(weights(), kind, gptq.importance), kind)
    worst = [np.abs(found[:, 256:] - weights()[:, 256:]).max() for found in (rounded, plain)]
    assert worst[0] <= 2 * worst[1]
    assert gptq.hessian.loss(rounded - weights()) < gptq.hessian.loss(plain - weights())


@kinds
def test_the_number_of_threads_does_not_matter(kind: GgmlType) -> None:
    hessian, many = hessian_of(activations()), weights(300)
    one, three = (GptqEncoder(hessian, threads=threads).encode(many, kind) for threads in (1, 3))
    assert np.array_equal(one, three)


@pytest.mark.parametrize("kind", [GgmlType.Q4_K, GgmlType.IQ4_XS])
@pytest.mark.parametrize(("broken", "says"), [(np.nan, "not finite"), (1e6, "too large for")])
def test_weights_that_the_type_cannot_hold_are_refused(kind: GgmlType, broken: float, says: str) -> None:
    spoiled = weights()
    spoiled[3, 300] = broken
    with pytest.raises(ValueError, match=says):
        GptqEncoder(hessian_of(activations())).encode(spoiled, kind)


def test_weights_that_only_become_too_large_when_they_are_corrected_are_refused() -> None:
    y = activations()
    hessian = hessian_of((y * np.float32(1e-3)).astype(np.float32), y)  # the gain is about a thousand
    large = weights() * np.float32(5e4)
    number_formats.check_weights(large, GgmlType.Q4_K)
    with pytest.raises(ValueError, match="too large"):
        GptqEncoder(hessian, target_damping=1e-6).encode(large, GgmlType.Q4_K)
