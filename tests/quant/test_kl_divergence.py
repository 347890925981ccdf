from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_quant import kernels
from ayaedge_quant import kl_divergence as twin

VOCABULARY = 256_000
both_forms = pytest.mark.parametrize(
    "measure", [twin.kl_divergence, kernels.kl_divergence], ids=["numpy", "native"]
)
Measure = Callable[[NDArray[np.float32], NDArray[np.float32]], twin.KlDivergence]


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
    native = kernels.kl_divergence(reference, candidate, threads=threads)
    expected = twin.kl_divergence(reference, candidate)
    np.testing.assert_allclose(native.kl, expected.kl, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(native.same_top, expected.same_top)


def test_the_kernel_reads_the_rows_of_a_strided_view() -> None:
    logits = random_logits(6, seed=5, columns=64)
    view = logits[::2]
    np.testing.assert_allclose(
        kernels.kl_divergence(view, view[::-1]).kl, twin.kl_divergence(view, view[::-1]).kl
    )


@pytest.mark.parametrize("parts", [(40,), (1, 39), (7, 13, 20), (1,) * 40])
def test_a_vocabulary_in_parts_gives_what_a_whole_one_does(parts: tuple[int, ...]) -> None:
    reference, other = random_logits(6, seed=6, columns=40), random_logits(6, seed=7, columns=40)
    reference[0], other[0] = np.linspace(-300, 300, 40), np.linspace(300, -300, 40)  # tops at either end
    reference[1] += 1e4
    running, start = twin.RunningKlDivergence(6), 0
    for part in parts:
        running.add(reference[:, start : start + part], other[:, start : start + part])
        start += part
    expected = twin.kl_divergence(reference, other).kl
    np.testing.assert_allclose(running.result(), expected, rtol=1e-9, atol=1e-9)


def test_of_a_vocabulary_in_parts_equal_logits_do_not_diverge() -> None:
    logits, running = random_logits(3, seed=8, columns=40), twin.RunningKlDivergence(3)
    running.add(logits[:, :25], logits[:, :25])
    running.add(logits[:, 25:], logits[:, 25:])
    assert np.abs(running.result()).max() < 1e-12


def test_impossible_tokens_in_parts_give_no_number_rather_than_a_wrong_one() -> None:
    """No decoder gives -inf as a logit; `divergence` alone knows what to make of it."""
    reference, other = random_logits(2, seed=9, columns=8), random_logits(2, seed=10, columns=8)
    reference[0, 3] = other[0, 3] = -np.inf
    running = twin.RunningKlDivergence(2)
    with np.errstate(invalid="ignore"):
        running.add(reference, other)
    assert np.isnan(running.result()[0])
    assert running.result()[1] == pytest.approx(twin.kl_divergence(reference, other).kl[1])


def test_parts_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        twin.RunningKlDivergence(2).add(random_logits(2, 1, 8), random_logits(2, 1, 7))
