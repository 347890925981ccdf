"""The kernels of a prefill against their numpy twin, and within llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import prefill_twin as twin
from ayaedge import AyaVision, CacheOptions, DecoderOptions, llama
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.cancellation import Cancellation
from ayaedge.decoder import acceleration
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import Kernel
from ayaedge.errors import BackendError, CancelledError, InvalidOptionError
from ayaedge.hardware.machine import processor
from prefill_twin import KINDS, ROUNDING, TINY, largest_weights, random_weights

DEMO = read_bundle(demo_bundle())
KERNELS: tuple[Kernel, ...] = ("scalar", *acceleration.usable_kernels())
"""Each that this processor can run."""
FEATURES = {
    "avx2": "avx2", "avx-vnni": "avx_vnni", "avx512-vnni": "avx512_vnni",
    "neon-dotprod": "asimddp", "neon-i8mm": "i8mm", "amx-bf16": "amx_bf16",
}  # fmt: skip
OF_BYTES = [name for name in KERNELS if name != "amx-bf16"]
"""Those that quantize activations; the other is tried without its processor in `test_acceleration_amx.py`."""


def assert_is_the_twins(weights: NDArray[np.uint8], kind: int, x: NDArray[np.float32], **how: Any) -> None:
    of_bytes = twin.product(weights, kind, x)
    for name in KERNELS:
        expected, magnitude = of_bytes if name in OF_BYTES else twin.product_bf16(weights, kind, x)
        found = acceleration.product(weights, kind, x, name, **how)
        least = 1e-37 if name in OF_BYTES else TINY * x.shape[1]
        assert (np.abs(found - expected) <= ROUNDING * magnitude + least).all(), name


def test_the_kernels_are_those_that_the_processor_has_instructions_for() -> None:
    assert acceleration.library_path().exists()
    features = processor().features
    expected = [name for name, feature in FEATURES.items() if feature in features]
    usable = list(acceleration.usable_kernels())
    if usable:  # no kernels are built for other processors; and a system may keep a processor's tiles from us
        assert usable in (expected, expected[:-1]) if "amx-bf16" in expected else usable == expected
    assert set(FEATURES) | {"scalar"} == set(get_args(Kernel))


@pytest.mark.parametrize("name", OF_BYTES)
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32 - 1), st.integers(-44, 38))
def test_activations_are_quantized_to_the_twins_bytes(
    name: Kernel, columns: int, blocks: int, seed: int, exponent: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((columns, 256 * blocks))
    x[:, :: rng.integers(2, 99)] *= rng.choice([0, 1e-3, 12])
    x[rng.integers(columns), :256] = rng.choice([0.0, 1e-41, 3e38, np.inf, -np.inf, np.nan])
    with np.errstate(over="ignore"):
        narrow = (x * 10.0**exponent).astype(np.float32)
    codes, factors = acceleration.quantize(narrow, name)
    expected_codes, expected_factors = twin.quantize(narrow)
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(factors, expected_factors, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 5), st.integers(1, 40), st.integers(1, 3),
    st.integers(0, 2**32 - 1), st.integers(-30, 25),
)  # fmt: skip
def test_products_of_every_shape_and_size_are_the_twins(
    kind: int, panels: int, blocks: int, columns: int, threads: int, seed: int, exponent: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((columns, 256 * blocks)) * 10.0**exponent).astype(np.float32)
    x[:, :: rng.integers(2, 99)] *= 12
    x[rng.integers(columns), :256] = rng.choice([0.0, 1e-42])
    assert_is_the_twins(random_weights(rng, kind, 32 * panels, 256 * blocks), kind, x, threads=threads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_do_not_overflow(kind: int, sign: int) -> None:
    x = np.full((7, 512), sign, np.float32)
    assert_is_the_twins(largest_weights(kind, 32, 512), kind, x)
    x[:, ::2] *= -1
    assert_is_the_twins(largest_weights(kind, 32, 512), kind, x)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_more_columns_than_are_computed_at_once_are_right_and_threads_change_no_bit(
    name: Kernel, kind: int
) -> None:
    rng = np.random.default_rng(0)
    weights = random_weights(rng, kind, 32, 256)
    x = rng.standard_normal((515, 256)).astype(np.float32)
    found = [acceleration.product(weights, kind, x, name, threads=threads) for threads in (1, 2, 7)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    alone = acceleration.product(weights, kind, x[510:], name)
    assert np.array_equal(found[0][510:], alone)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_spoils_its_column_alone(name: Kernel, odd: float) -> None:
    rng = np.random.default_rng(0)
    weights, x = random_weights(rng, twin.Q4_K, 32, 512), rng.standard_normal((9, 512)).astype(np.float32)
    x[4, 300] = odd
    found = acceleration.product(weights, twin.Q4_K, x, name)
    assert np.isnan(found[4]).all()
    assert np.isfinite(np.delete(found, 4, axis=0)).all()


def test_a_product_that_does_not_fit_is_refused() -> None:
    x, weights = np.zeros((1, 256), np.float32), np.zeros((32, 144), np.uint8)
    for wrong, kind in ((weights[:31], 12), (weights[:, :143], 12), (weights, 14), (weights, 13)):
        with pytest.raises(ValueError, match=r"refused|whole blocks"):
            acceleration.product(wrong, kind, x, "scalar")
    with pytest.raises(ValueError, match="refused"):
        acceleration.quantize(np.zeros((1, 255), np.float32), "scalar")


def text_tokens(count: int) -> list[int]:
    """Real text, as the demonstration model's own tokens."""
    text = (Path(__file__).parents[3] / "README.md").read_text("utf-8")
    with Decoder(DEMO.decoder_path, DEMO.manifest, DecoderOptions(context_size=2)) as decoder:
        ids = decoder.vocabulary.tokenize(text)
    return (ids * (1 + count // len(ids)))[:count]


def open_decoder(name: str, **options: Any) -> Decoder:
    return Decoder(DEMO.decoder_path, DEMO.manifest, DecoderOptions(acceleration=name, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def exact_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model's weights as they are, in single precision."""
    path = tmp_path_factory.mktemp("exact") / "exact.gguf"
    stored = gguf.GGUFReader(DEMO.decoder_path)
    writer = gguf.GGUFWriter(path, "cohere2")
    for name, field in stored.fields.items():
        if not name.startswith("GGUF.") and name != gguf.Keys.General.ARCHITECTURE:
            kind, inner = field.types[0], field.types[-1]
            is_list = kind == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), kind, sub_type=inner if is_list else None)
    for tensor in stored.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def plain_logits(path: Path, parts: list[list[int]], *, cache_type: int = 1) -> NDArray[np.float32]:
    """Of each token of texts of one length, by a llama_context that somebody else in this process makes."""
    library, count = llama.library(), len(parts[0])
    model_parameters = library.llama_model_default_params()
    model_parameters.use_extra_bufts = False
    model = library.llama_model_load_from_file(str(path).encode(), model_parameters)
    parameters = library.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = count
    parameters.type_k = parameters.type_v = cache_type
    parameters.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.n_threads = parameters.n_threads_batch = 1
    context = library.llama_init_from_model(model, parameters)
    size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
    flags, logits = (ctypes.c_int8 * count)(*[1] * count), []
    for ids in parts:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        batch = library.llama_batch(n_tokens=count, token=(library.llama_token * count)(*ids), logits=flags)
        assert library.llama_decode(context, batch) == 0
        logits.append(np.ctypeslib.as_array(library.llama_get_logits(context), (count, size)).copy())
    library.llama_free(context)
    library.llama_model_free(model)
    return np.concatenate(logits)


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


@pytest.mark.parametrize("flash", [False, True])
def test_a_kernel_is_as_near_to_the_exact_decoder_as_llama_cpp_is(exact_path: Path, flash: bool) -> None:
    parts = np.array(text_tokens(12 * 64)).reshape(12, 64).tolist()
    exact = log_softmax(plain_logits(exact_path, parts, cache_type=0))
    divergence = {}
    for name in ("off", *KERNELS[1:]):
        options = {"flash_attention": True} if flash else {"cache_type": "f32"}
        with open_decoder(name, all_logits=True, batch_size=64, threads=1, **options) as decoder:
            rows = []
            for ids in parts:
                decoder.clear()
                decoder.decode_tokens(ids)
                rows.append(decoder.logits())
        found = log_softmax(np.concatenate(rows))
        divergence[name] = float((np.exp(exact) * (exact - found)).sum(-1).mean())
    assert divergence["off"] > 0
    assert max(divergence.values()) <= 1.1 * divergence["off"], divergence


@pytest.mark.parametrize("name", KERNELS)
def test_a_long_batch_goes_to_the_kernel_and_a_short_one_to_llama_cpp(name: Kernel) -> None:
    ids = text_tokens(300)
    with open_decoder("off", threads=1) as stock, open_decoder(name, threads=1) as decoder:
        before = acceleration.products()
        stock.decode_tokens(ids)
        assert acceleration.products() == before
        decoder.decode_tokens(ids)  # 256 and 44
        layers = read_figures(DEMO.decoder_path).layers
        # seven in each layer and part, but those of the last layer whose results only the last token needs
        assert acceleration.products() - before >= 2 * (7 * (layers - 1) + 3)
        before = acceleration.products()
        decoder.decode_tokens(ids[:31])
        decoder.decode_tokens(ids[:1])
        assert acceleration.products() == before


def test_a_plain_context_of_somebody_else_computes_as_without_the_kernels() -> None:
    ids = text_tokens(64)
    name = KERNELS[-1]
    with open_decoder("off", all_logits=True, batch_size=64, threads=1) as stock:
        stock.decode_tokens(ids)
        expected = stock.logits()
    with open_decoder(name, all_logits=True, batch_size=64, threads=1) as decoder:
        before = acceleration.products()
        assert np.array_equal(plain_logits(DEMO.decoder_path, [ids]), expected)
        assert acceleration.products() == before
        decoder.decode_tokens(ids)
        assert acceleration.products() > before
        assert not np.array_equal(decoder.logits(), expected)


def test_growing_keeps_the_kernel() -> None:
    with open_decoder(KERNELS[-1]) as decoder:
        decoder.reserve(2000)
        before = acceleration.products()
        decoder.decode_tokens(text_tokens(64))
        assert acceleration.products() > before


def test_two_contexts_that_compute_at_once_are_right() -> None:
    ids = text_tokens(200)

    def decode(name: str) -> NDArray[np.float32]:
        with open_decoder(name, threads=2) as decoder:
            decoder.decode_tokens(ids)
            return decoder.last_logits()

    names = ["off", KERNELS[-1]]
    alone = {name: decode(name) for name in names}
    with ThreadPoolExecutor(4) as pool:
        for name, logits in zip(2 * names, pool.map(decode, 2 * names), strict=True):
            assert np.array_equal(logits, alone[name]), name


def test_a_cancelled_prefill_stops_and_can_go_on() -> None:
    ids = text_tokens(128)
    with open_decoder(KERNELS[-1], threads=1) as decoder:
        flag = Cancellation()
        decoder.watch(flag)
        flag.set()
        before = acceleration.products()
        with pytest.raises(CancelledError):
            decoder.decode_tokens(ids)
        assert acceleration.products() == before
        decoder.watch(Cancellation())
        decoder.clear()
        decoder.decode_tokens(ids)
        decoder.check_logits()


def test_states_of_another_kernel_have_another_key() -> None:
    identities = set()
    for name in ("off", *KERNELS):
        with open_decoder(name) as decoder:
            identities.add(decoder.identity)
    assert len(identities) == 1 + len(KERNELS)


@pytest.fixture
def unknown_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(acceleration, "_KNOWN", {"0.3.35": "0.25.2"})
    acceleration.refusal.cache_clear()
    yield
    acceleration.refusal.cache_clear()


@pytest.mark.usefixtures("unknown_version")
def test_another_version_of_ggml_is_left_alone(tmp_path: Path) -> None:
    assert "is not among the known ones" in (acceleration.refusal() or "")
    with pytest.raises(BackendError, match=r"llama-cpp-python 0\.3\.\d+ with ggml"):
        open_decoder("avx2")
    cache = CacheOptions(directory=tmp_path)
    with AyaVision.load(decoder=DecoderOptions(acceleration="auto"), cache=cache) as model:
        assert model.ask("Hi", max_tokens=1).ids


def test_a_kernel_that_the_processor_cannot_run_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "usable_kernels", lambda: ("avx2",))
    with pytest.raises(BackendError, match="cannot run the acceleration avx512-vnni: it can run avx2"):
        open_decoder("avx512-vnni")
    with pytest.raises(InvalidOptionError, match="acceleration"):
        DecoderOptions(acceleration="amx")  # type: ignore[arg-type]
