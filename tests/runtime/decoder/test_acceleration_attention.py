"""The attention of a prefill against its numpy twin, and within llama.cpp."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import prefill_twin as twin
from ayaedge import DecoderOptions
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.decoder import acceleration, kernel_trial
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.lanes import lanes_agree
from ayaedge.decoder.options import ATTENTION_KERNELS
from ayaedge.errors import BackendError
from ayaedge_export.synthetic.bundle import MODELS, write_random_bundle

KERNELS = [name for name in acceleration.usable_kernels() if acceleration.has_attention(name)]
DEMO = read_bundle(demo_bundle())
HALVES = np.float16
ROUNDING = 1e-5
"""Of results, as a part of the largest value; scores of up to 30 lose as much in single precision."""

pytestmark = pytest.mark.skipif(not KERNELS, reason="no kernel for this processor computes attention")


def random_halves(rng: np.random.Generator, *shape: int) -> NDArray[np.float16]:
    return rng.standard_normal(shape).astype(HALVES)


def causal(tokens: int, keys: int, window: int) -> NDArray[np.float16]:
    """The tokens are the last of the keys, and look back so far."""
    position, key = np.arange(keys - tokens, keys)[:, None], np.arange(keys)
    return np.where((key <= position) & (key > position - window), HALVES(0), HALVES(-np.inf))


def mask_of(kind: str, tokens: int, keys: int, rng: np.random.Generator) -> NDArray[np.float16] | None:
    if kind == "none":
        return None
    if kind in ("causal", "window"):
        return causal(tokens, keys, keys if kind == "causal" else int(rng.integers(1, keys + 1)))
    mask = random_halves(rng, tokens, keys)
    mask[rng.random((tokens, keys)) < 0.6] = -np.inf
    mask[rng.integers(tokens)] = -np.inf  # a token that sees nothing
    mask[:, rng.integers(keys) :] = -np.inf
    return mask


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 200), st.integers(1, 3), st.integers(1, 9),
    st.sampled_from([32, 64, 96, 128, 256]), st.sampled_from(["none", "causal", "window", "any"]),
    st.integers(1, 3), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_attention_of_every_shape_and_mask_is_the_twins(
    tokens: int, keys: int, kv_heads: int, group: int, depth: int, kind: str, threads: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    q = (3 * rng.standard_normal((tokens, kv_heads * group, depth))).astype(np.float32)
    k, v = random_halves(rng, keys, kv_heads, depth), random_halves(rng, keys, kv_heads, depth)
    mask, scale = mask_of(kind, tokens, keys, rng), depth**-0.5
    expected = twin.attention(q, k, v, mask, scale)
    for name in KERNELS:
        found = acceleration.attention(q, k, v, mask, name, scale=scale, threads=threads)
        assert np.abs(found - expected).max() <= ROUNDING * np.abs(v).max(), name


@pytest.mark.parametrize("name", KERNELS)
def test_neither_threads_nor_other_tokens_change_a_bit(name: Any) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((150, 4, 64)).astype(np.float32)
    k, v = random_halves(rng, 300, 2, 64), random_halves(rng, 300, 2, 64)
    mask = causal(150, 300, 100)
    one, two, seven = (
        acceleration.attention(q, k, v, mask, name, scale=0.125, threads=threads) for threads in (1, 2, 7)
    )
    assert np.array_equal(one, two)
    assert np.array_equal(one, seven)
    alone = acceleration.attention(q[77:90], k, v, mask[77:90], name, scale=0.125)
    assert np.array_equal(alone, one[77:90])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_spoils_itself_alone(name: Any, odd: float) -> None:
    rng = np.random.default_rng(0)
    q = rng.standard_normal((40, 4, 32)).astype(np.float32)
    k, v = random_halves(rng, 90, 2, 32), random_halves(rng, 90, 2, 32)
    q[11, 3, 5] = odd
    found = acceleration.attention(q, k, v, causal(40, 90, 90), name, scale=1)
    assert np.isnan(found[11, 3]).all()
    found[11, 3] = 0
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", KERNELS)
def test_scores_of_any_size_give_the_value_of_the_largest(name: Any) -> None:
    rng = np.random.default_rng(0)
    q = np.full((35, 2, 32), 1e4, np.float32)
    k, v = np.zeros((130, 1, 32), HALVES), random_halves(rng, 130, 1, 32)
    k[[3, 70, 129]] = [[[-6e4]], [[6e4]], [[5e4]]]
    found = acceleration.attention(q, k, v, None, name, scale=1)
    assert np.allclose(found, v[70].astype(np.float32), rtol=3e-7, atol=0)


def test_an_attention_that_does_not_fit_is_refused() -> None:
    q, k = np.zeros((2, 3, 32), np.float32), np.zeros((4, 2, 32), HALVES)
    with pytest.raises(ValueError, match="refused"):
        acceleration.attention(q, k, k, None, KERNELS[0], scale=1)  # three heads over two
    with pytest.raises(ValueError, match="refused"):
        acceleration.attention(q[..., :31], k[..., :31], k[..., :31], None, KERNELS[0], scale=1)
    with pytest.raises(ValueError, match="do not fit"):
        acceleration.attention(q[:, :2], k, k, np.zeros((2, 3), HALVES), KERNELS[0], scale=1)
    with pytest.raises(ValueError, match="refused"):
        acceleration.attention(q[:, :2], k, k, None, "scalar", scale=1)


def decode(name: str, ids: list[int], **options: Any) -> tuple[NDArray[np.float32], int]:
    """The logits behind tokens, and how many attentions were ours."""
    asked = DecoderOptions(acceleration=name, threads=2, **options)  # type: ignore[arg-type]
    with Decoder(DEMO.decoder_path, DEMO.manifest, asked) as decoder:
        before = acceleration.attentions()
        decoder.decode_tokens(ids)
        return decoder.last_logits(), acceleration.attentions() - before


def test_flash_attention_of_a_long_batch_is_ours_in_layers_with_and_without_a_window() -> None:
    ids = np.random.default_rng(0).integers(3, 2000, 300).tolist()  # 256 and 44; the window is 64
    layers = read_figures(DEMO.decoder_path).layers
    plain, none = decode(KERNELS[-1], ids, flash_attention=False)
    ours, count = decode(KERNELS[-1], ids, flash_attention=True)
    assert (none, count) == (0, 2 * layers)
    assert np.abs(ours - plain).max() < 0.15 * np.std(
        plain
    )  # as llama.cpp's two ways differ, over 8-bit activations


@pytest.mark.parametrize(
    "options", [{"acceleration": "off"}, {"acceleration": "scalar"}, {"cache_type": "q8_0"}, {"tokens": 31}]
)
def test_an_attention_of_another_kind_is_left_to_llama_cpp(options: dict[str, Any]) -> None:
    known = {"acceleration": KERNELS[-1], "tokens": 40, **options}
    ids = [5] * known.pop("tokens")
    assert decode(known.pop("acceleration"), ids, flash_attention=True, **known)[1] == 0


def test_the_kernels_that_compute_attention_are_those_that_options_know() -> None:
    assert set(KERNELS) == set(ATTENTION_KERNELS) & set(acceleration.usable_kernels())


@pytest.mark.parametrize(("size", "ours"), [(16, False), (32, True), (48, False), (288, False)])
def test_heads_that_our_attention_does_not_take_are_attended_without_llama_cpps_flash_attention(
    size: int, ours: bool, tmp_path: Path
) -> None:
    model = MODELS["8b"].cut(2)
    vision = replace(model.vision, hidden_size=48, intermediate_size=96, num_layers=1, num_heads=3)
    text = replace(
        model.text, vocab_size=8192, hidden_size=4 * size, intermediate_size=512, num_heads=4, num_kv_heads=2
    )
    model = replace(model, vision=replace(vision, adapter_size=64, output_size=4 * size), text=text)
    bundle = read_bundle(
        write_random_bundle(
            tmp_path / "bundle", "heads", model, vision="fp32", quant="f32", threads=None, seed=0,
            on_progress=None,
        )
    )  # fmt: skip
    for asked, flash in ((None, ours), (True, True), (False, False)):
        options = DecoderOptions(acceleration=KERNELS[-1], flash_attention=asked)
        with Decoder(bundle.decoder_path, bundle.manifest, options) as decoder:
            before = acceleration.attentions()
            decoder.decode_tokens([5] * 40)
            attended = acceleration.attentions() - before
            assert (decoder.uses_flash, attended > 0) == (flash, ours and flash)
            if flash and not ours:
                assert not lanes_agree(decoder, 1)
    q, k = np.zeros((2, 4, size), np.float32), np.zeros((4, 2, size), HALVES)
    if ours:
        acceleration.attention(q, k, k, None, KERNELS[-1], scale=1)
    else:
        with pytest.raises(ValueError, match="refused"):
            acceleration.attention(q, k, k, None, KERNELS[-1], scale=1)


def test_two_contexts_that_attend_at_once_are_right() -> None:
    ids = np.random.default_rng(1).integers(3, 2000, 200).tolist()
    alone = decode(KERNELS[-1], ids, flash_attention=True)[0]
    with ThreadPoolExecutor(3) as pool:
        for found, _ in pool.map(lambda _: decode(KERNELS[-1], ids, flash_attention=True), range(3)):
            assert np.array_equal(found, alone)


def test_an_attention_that_is_told_to_stop_ends() -> None:
    flag = ctypes.create_string_buffer(b"", 2)
    backend = kernel_trial.Backend(acceleration.make_backend(KERNELS[-1]), 2)
    strlen = ctypes.cast(ctypes.CDLL("msvcrt" if os.name == "nt" else None).strlen, ctypes.c_void_p)
    backend.call(b"ggml_backend_set_abort_callback", strlen, ctypes.cast(flag, ctypes.c_void_p))
    graph = kernel_trial.AttentionGraph(40, 64, 2, 1, 32, np.random.default_rng(0))
    with backend, graph:
        before = acceleration.attentions()
        assert graph.error(backend.compute(graph)) < ROUNDING
        flag.value = b"1"
        with pytest.raises(BackendError, match="status 1"):
            backend.compute(graph)
        assert acceleration.attentions() == before + 1
