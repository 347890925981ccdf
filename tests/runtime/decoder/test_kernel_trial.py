"""Which kernel a decoder computes with: the best that is right and faster here, tried in a child, then remembered."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import probed
from ayaedge import DecoderOptions
from ayaedge.decoder import acceleration, kernel_trial
from ayaedge.decoder.kernel_trial import (
    VARIABLE,
    Backend,
    Product,
    judge,
    processor_backend,
    settle_acceleration,
    try_kernel,
)
from ayaedge.errors import BackendError, InvalidOptionError

AUTO = DecoderOptions(acceleration="auto")
USABLE = acceleration.usable_kernels()

needs_a_kernel = pytest.mark.skipif(not USABLE, reason="there is no kernel for this processor")


@pytest.fixture(autouse=True)
def _as_users_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def _only_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it fails, the others would be tried, each in a process."""
    monkeypatch.setattr(kernel_trial, "usable_kernels", lambda: USABLE[-1:])


def settled(directory: Path | None, attempt: Any, options: DecoderOptions = AUTO) -> str:
    return settle_acceleration(options, directory, attempt).acceleration


@needs_a_kernel
@pytest.mark.parametrize("name", USABLE)
def test_the_kernels_of_this_processor_are_as_exact_as_llama_cpp(name: Any) -> None:
    errors, gain, attention_gain = try_kernel(name, 1)
    has_attention = acceleration.has_attention(name)
    assert (errors.pop("attention", 9) < 1) == (attention_gain > 0) == has_attention
    assert set(errors) == {"Q4_K", "Q6_K"}
    if name == "amx-bf16":  # does not quantize activations
        assert all(error < 0.3 for error in errors.values())
    else:
        assert all(abs(error - 1) < 0.02 for error in errors.values())
    assert gain > 0


def test_a_product_of_weights_that_are_given_is_theirs() -> None:
    rng = np.random.default_rng(0)
    blocks, x = (
        rng.integers(0, 256, (64, 2 * 144), np.uint8),
        rng.standard_normal((40, 512)).astype(np.float32),
    )
    blocks.reshape(64, 2, 144)[..., :4] = np.float16([0.01, 0.02]).view(np.uint8)
    with Product.of("Q4_K", blocks, x) as product, Backend(processor_backend(), 1) as backend:
        found, exact = backend.compute(product), product.exact()
    ours = acceleration.product(blocks, 12, x, "scalar")
    assert np.linalg.norm(found - exact) < 0.02 * np.linalg.norm(exact)
    assert np.linalg.norm(ours - exact) < 0.02 * np.linalg.norm(exact)


@needs_a_kernel
def test_a_kernel_that_is_right_and_faster_is_taken_and_remembered(tmp_path: Path) -> None:
    assert settled(tmp_path, probed.find_kernel_right_and_fast) == USABLE[-1]
    assert settled(tmp_path, probed.find_no_kernel_twice) == USABLE[-1]
    assert judge(AUTO, tmp_path, probed.find_no_kernel_twice).gain == 1.5


@needs_a_kernel
@pytest.mark.usefixtures("_only_the_best")
@pytest.mark.skipif(os.name == "nt", reason="Windows has exit codes instead of signals")
@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        (probed.find_kernel_slow, ""),
        (probed.find_kernel_wrong, "products of Q6_K weights are wrong"),
        (probed.find_attention_wrong, "attention is wrong"),
        (probed.die_with_kernel, "SIGILL"),
    ],
)
def test_a_kernel_that_is_slow_or_wrong_or_ends_the_process_is_not_taken(
    attempt: Any, reason: str, tmp_path: Path
) -> None:
    assert settled(tmp_path, attempt) == "off"
    assert settled(tmp_path, probed.find_no_kernel_twice) == "off"
    assert reason in judge(AUTO, tmp_path, probed.find_no_kernel_twice).reason
    named = DecoderOptions(acceleration=USABLE[-1])
    if not reason:  # slow: whoever names it gets it
        assert settled(tmp_path, probed.find_no_kernel_twice, named) == USABLE[-1]
        return
    with pytest.raises(BackendError, match=f"does not work on this machine: .*{reason}"):
        settled(tmp_path, probed.find_no_kernel_twice, named)


@pytest.mark.skipif(not any(map(acceleration.has_attention, USABLE)), reason="no kernel here has attention")
def test_flash_attention_is_on_where_a_kernels_is_faster_and_nothing_else_was_asked_for(
    tmp_path: Path,
) -> None:
    def flash(directory: str, attempt: Any, **options: Any) -> bool:
        asked = DecoderOptions(acceleration="auto", **options)
        return settle_acceleration(asked, tmp_path / directory, attempt).uses_flash

    assert flash("fast", probed.find_attention_fast)
    assert not flash("fast", probed.find_no_kernel_twice, flash_attention=False)
    assert not flash("fast", probed.find_no_kernel_twice, cache_type="f32")
    assert not flash("slow", probed.find_kernel_right_and_fast)
    assert flash("slow", probed.find_no_kernel_twice, flash_attention=True)


@pytest.mark.skipif(os.name == "nt", reason="Windows has exit codes instead of signals")
def test_the_next_best_kernel_is_taken_where_better_ones_are_wrong_or_end_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel_trial, "usable_kernels", lambda: ("avx2", "avx-vnni", "amx-bf16"))
    assert settled(tmp_path, probed.find_only_avx2_right) == "avx2"
    assert settled(tmp_path, probed.find_no_kernel_twice) == "avx2"
    found = judge(AUTO, tmp_path, probed.find_no_kernel_twice)
    assert (found.gain, found.is_worth_it) == (1.5, True)
    assert [verdict.kernel for verdict in found.passed_over] == ["amx-bf16", "avx-vnni"]
    assert "SIGILL" in found.passed_over[0].reason
    assert "Q6_K weights are wrong" in found.passed_over[1].reason


def test_a_slow_kernel_is_not_followed_by_one_that_should_be_slower(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel_trial, "usable_kernels", lambda: ("avx2", "amx-bf16"))
    assert settled(tmp_path, probed.find_kernel_slow) == "off"
    assert judge(AUTO, tmp_path, probed.find_kernel_wrong).kernel == "amx-bf16"


@needs_a_kernel
def test_a_program_that_cannot_be_started_a_second_time_goes_without(tmp_path: Path) -> None:
    assert settled(tmp_path, probed.refuse_with_kernel) == "off"
    with pytest.raises(BackendError, match="it could not be tried: no second process"):
        settled(tmp_path, probed.refuse_with_kernel, DecoderOptions(acceleration=USABLE[-1]))
    assert settled(tmp_path, probed.find_kernel_right_and_fast) == USABLE[-1]


def test_nothing_is_tried_without_a_place_to_remember_it_or_for_gpus_or_repacked_weights(
    tmp_path: Path,
) -> None:
    assert settled(None, probed.find_no_kernel_twice) == "off"
    for changes in ({"gpu_layers": 1}, {"repack": True}):
        options = DecoderOptions(acceleration="auto", **changes)  # type: ignore[arg-type]
        assert settled(tmp_path, probed.find_no_kernel_twice, options) == "off"
        with pytest.raises(InvalidOptionError, match="acceleration is scalar"):
            settled(tmp_path, None, DecoderOptions(acceleration="scalar", **changes))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_environment_says_what_auto_means(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    assert settled(tmp_path, probed.find_no_kernel_twice) == "off"
    monkeypatch.setenv(VARIABLE, "scalar")
    assert settled(tmp_path, probed.find_kernel_right_and_fast) == "scalar"
    assert settled(tmp_path, None, DecoderOptions(acceleration="off")) == "off"
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(InvalidOptionError, match=VARIABLE):
        settled(tmp_path, None)


def test_a_kernel_that_is_told_to_stop_ends_its_product() -> None:
    """By the flag that `Decoder.watch` hands to llama.cpp, which hands it on."""
    flag = ctypes.create_string_buffer(b"", 2)
    backend = kernel_trial.Backend(acceleration.make_backend("scalar"), 2)
    strlen = ctypes.cast(ctypes.CDLL("msvcrt" if os.name == "nt" else None).strlen, ctypes.c_void_p)
    backend.call(b"ggml_backend_set_abort_callback", strlen, ctypes.cast(flag, ctypes.c_void_p))
    with backend, kernel_trial.Product("Q4_K", 64, 256, np.random.default_rng(0)) as product:
        before = acceleration.products()
        assert backend.compute(product).any()
        assert acceleration.products() == before + 1
        flag.value = b"1"
        with pytest.raises(BackendError, match="status 1"):
            backend.compute(product)
        assert acceleration.products() == before + 1


@needs_a_kernel
@pytest.mark.usefixtures("_only_the_best")
def test_a_verdict_that_makes_no_sense_is_not_followed(tmp_path: Path) -> None:
    assert settled(tmp_path, probed.find_kernel_nonsense) == "off"
    assert "ayaedge cache clear" in judge(AUTO, tmp_path, probed.find_no_kernel_twice).reason
