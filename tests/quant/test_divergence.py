from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_quant import divergence as twin
from ayaedge_quant import kernels

VOCABULARY = 256_000
both_forms = pytest.mark.parametrize(
    "measure", [twin.divergence, kernels.divergence], ids=["numpy", "native"]
)
Measure = Callable[[NDArray[np.float32], NDArray[np.float32]], twin.Divergence]


def random_logits(rows: int, seed: int, columns: int = VOCABULARY) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 4, (rows, columns)).astype(np.float32)


@both_forms
def test_equal_logits_do_not_diverge(measure: Measure) -> None:
    logits = random_logits(3, seed=1)
    kl, same_top = measure(logits, logits.copy())
    assert np.abs(kl).max() < 1e-12
    assert same_top.all()


@both_forms
def test_divergence_of_a_known_pair_is_the_textbook_value(measure: Measure) -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    kl, same_top = measure(np.log(p)[None].astype(np.float32), np.log(q)[None].astype(np.float32))
    assert kl[0] == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-6)
    assert not same_top[0]


@both_forms
def test_a_constant_added_to_all_logits_changes_nothing(measure: Measure) -> None:
    logits = random_logits(2, seed=2)
    assert np.abs(measure(logits, logits + np.float32(64)).kl).max() < 1e-9


@both_forms
def test_large_logits_and_impossible_tokens_do_not_overflow(measure: Measure) -> None:
    p = np.array([[3e38, -3e38, 0.0], [0.0, -np.inf, 1.0]], np.float32)
    q = np.array([[3e38, 0.0, -3e38], [0.5, -np.inf, 1.0]], np.float32)
    kl, same_top = measure(p, q)
    assert np.isfinite(kl).all()
    assert same_top.all()


@both_forms
def test_logits_of_different_shapes_are_refused(measure: Measure) -> None:
    with pytest.raises(ValueError, match="same shape"):
        measure(random_logits(2, 1, 8), random_logits(3, 1, 8))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_native_and_numpy_agree_over_a_full_vocabulary(threads: int) -> None:
    reference = random_logits(5, seed=3)
    candidate = reference + random_logits(5, seed=4) * np.float32(0.2)
    native = kernels.divergence(reference, candidate, threads=threads)
    expected = twin.divergence(reference, candidate)
    np.testing.assert_allclose(native.kl, expected.kl, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(native.same_top, expected.same_top)


def test_the_kernel_reads_the_rows_of_a_strided_view() -> None:
    logits = random_logits(6, seed=5, columns=64)
    view = logits[::2]
    np.testing.assert_allclose(kernels.divergence(view, view[::-1]).kl, twin.divergence(view, view[::-1]).kl)
