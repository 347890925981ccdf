"""Our block encoders against the installed ggml's, byte for byte."""

from __future__ import annotations

import platform
import sys

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayaedge_quant import kernels, number_formats
from ayaedge_quant.number_formats import GgmlType, encode, stock_encode

FAST = [GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K]


def ours(
    weights: np.ndarray, kind: GgmlType, importance: np.ndarray | None = None, widest: int = kernels.WIDEST
) -> np.ndarray:
    return kernels.encode(weights, int(kind), kind.row_bytes(weights.shape[1]), importance, widest=widest)


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Heavy tails, columns of outliers, and rows of very different size."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(3, (rows, columns)) * np.exp(rng.standard_normal((rows, 1)))
    drawn[:, rng.integers(0, columns, 3)] *= 40
    return (0.02 * drawn).astype(np.float32)


def importance(columns: int) -> np.ndarray:
    return np.exp(2 * np.random.default_rng(1).standard_normal(columns)).astype(np.float32)


@pytest.fixture(autouse=True)
def _exact_compilers() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("ggml's compiler may fuse multiplications and additions on this platform")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", FAST)
def test_our_encoders_are_the_ones_that_are_used(kind: GgmlType, weighted: bool) -> None:
    assert number_formats._kernel_agrees(kind, weighted=weighted)


@pytest.mark.parametrize("widest", range(kernels.WIDEST + 1))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", FAST)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (33, 768), (16, 4096), (3, 14336)])
def test_blocks_are_ggmls(kind: GgmlType, weighted: bool, widest: int, rows: int, columns: int) -> None:
    x, columns_weigh = weights(rows, columns), importance(columns) if weighted else None
    assert np.array_equal(ours(x, kind, columns_weigh, widest), stock_encode(x, kind, columns_weigh))


@pytest.mark.parametrize("widest", range(kernels.WIDEST + 1))
@pytest.mark.parametrize("kind", FAST)
def test_blocks_of_odd_values_are_ggmls(kind: GgmlType, widest: int) -> None:
    x = weights(16, 512)
    x[0] = 0
    x[1] = -0.0
    x[2] = 0.3
    x[3], x[4] = np.abs(x[3]), -np.abs(x[4])
    x[5, ::3] = 0
    x[6] *= 1e-20  # below what counts as zeros
    x[7] *= 1e-41  # denormal
    x[8] *= 1e6
    x[9, :32] *= 1e6  # scales of the other groups round to zero
    x[10, 32:48] = 0
    x[11] = np.sign(x[11])
    x[12] = np.round(x[12] * 100) / 100
    half = np.where(np.arange(512) % 2, 1, 0).astype(np.float32)
    for columns_weigh in (None, importance(512), np.zeros(512, np.float32), half, 1e-30 * importance(512)):
        assert np.array_equal(ours(x, kind, columns_weigh, widest), stock_encode(x, kind, columns_weigh))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    x=arrays.arrays(np.float32, (3, 256), elements=st.floats(-1e4, 1e4, width=32)),
    columns_weigh=st.none() | arrays.arrays(np.float32, 256, elements=st.floats(0, 1e4, width=32)),
    kind=st.sampled_from(FAST),
)
def test_blocks_of_any_values_are_ggmls(
    x: np.ndarray, columns_weigh: np.ndarray | None, kind: GgmlType
) -> None:
    assert np.array_equal(ours(x, kind, columns_weigh), stock_encode(x, kind, columns_weigh))


def test_a_ggml_that_rounds_differently_is_used_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    x = weights(4, 512)
    expected = stock_encode(x, GgmlType.Q4_K)
    compiled = kernels.encode
    monkeypatch.setattr(kernels, "encode", lambda *given, **options: compiled(*given, **options) ^ 1)
    number_formats._kernel_agrees.cache_clear()
    try:
        assert np.array_equal(encode(x, GgmlType.Q4_K), expected)
        assert not number_formats._kernel_agrees(GgmlType.Q4_K, weighted=False)
    finally:
        number_formats._kernel_agrees.cache_clear()


def test_a_type_without_encoder_is_left_to_ggml() -> None:
    x = weights(4, 512)
    assert not ours(x, GgmlType.Q8_0).any()
    assert np.array_equal(encode(x, GgmlType.Q8_0), stock_encode(x, GgmlType.Q8_0))
