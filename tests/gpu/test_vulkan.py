"""The decoder on llama.cpp's real Vulkan backend, on a software driver: `make gpu`.

The environment must name the driver before the libraries are loaded, as `make gpu` does.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from ayaedge import BackendError, CacheOptions
from ayaedge.bundle import Bundle, demo_bundle, read_bundle
from ayaedge.cache.verified import verified
from ayaedge.decoder.device_trial import try_layers
from ayaedge.decoder.gguf_file import read_header
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import FLOAT_TYPES, CacheType, DecoderOptions
from ayaedge.hardware.devices import decoder_gpus
from ayaedge.hardware.probes import Probe, probe
from ayaedge.manifest import EmbeddingTable, Manifest
from ayaedge.planning.device_check import LARGEST_KL, check_devices
from ayaedge.planning.gpu_plan import gpu_bytes
from ayaedge.planning.placement import resolve
from ayaedge.planning.profile import profile_path, save_profile
from ayaedge.planning.tuning import tune
from ayaedge_export.exporter import export_checkpoint
from on_vulkan import (
    answer_at_once,
    answers,
    cancel,
    compare,
    distances,
    end_answers,
    move_states,
    taken,
)
from on_webgpu import DRIVER as SWIFTSHADER
from probed import use_decoder
from random_checkpoint import Shape, write_random_checkpoint
from stock_quantizer import stock_quantize

pytestmark = pytest.mark.gpu
SECONDS = 600.0
FLOATS = 1e-4
"""KL divergence of float weights with an f16 KV cache."""
QUANTIZED = 2e-3
"""Of 4-bit weights: the processor rounds activations to 8 bits for its products, the device does not."""
AS_NEAR = 1.1
"""How much farther from exact results the device may be than the processor."""
LATEST = 2.0
"""Seconds in which an answer ends."""
IMAGE = Path(__file__).parents[2] / "examples" / "pictures" / "six-cells.png"


@pytest.fixture(scope="session", autouse=True)
def vulkan() -> None:
    assert [gpu.backend for gpu in decoder_gpus()] == ["vulkan"], "llama-cpp-python has no Vulkan: make gpu"


def ask_all(function: Callable[..., Iterator[Any]], *arguments: Any) -> list[Any]:
    """In this process: a software driver compiles every shader anew in each, which takes longer than all the rest."""
    return list(function(*arguments))


@pytest.fixture(scope="session", params=["cohere", "cohere2"])
def random_bundle(
    request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    place = tmp_path_factory.mktemp("random")
    checkpoint = write_random_checkpoint(place / "checkpoint", tiny, Shape(text_type=request.param))
    return export_checkpoint(checkpoint, place / "bundle", quant="f32", vision="fp32")


@pytest.mark.parametrize("count", [40, 300], ids=["within the window", "beyond it"])
@pytest.mark.parametrize(("quant", "bar"), [("f32", FLOATS), ("f16", FLOATS), ("q4_k_m", QUANTIZED)])
def test_the_small_decoder_gives_the_processors_logits_and_tokens(
    exact_bundle: Bundle, tiny: Path, tmp_path: Path, quant: Any, bar: float, count: int
) -> None:
    bundle = exact_bundle if quant == "f32" else export_checkpoint(tiny, tmp_path / "b", quant=quant)
    found = ask_all(compare, str(bundle.directory), [-1, 3, 0], count)
    print(quant, count, found)
    assert [one["layers"] for one in found] == [6, 3, 0]
    assert max(one["kl"] for one in found) <= bar
    assert all(one["same"] for one in found)


def test_random_decoders_give_the_processors_logits_and_tokens(random_bundle: Bundle) -> None:
    found = ask_all(compare, str(random_bundle.directory), [-1, 3, 0], 200)
    print(found)
    assert [one["layers"] for one in found] == [7, 3, 0]
    assert max(one["kl"] for one in found) <= FLOATS
    assert all(one["same"] for one in found)


@pytest.mark.parametrize("count", [40, 300], ids=["within the window", "beyond it"])
def test_states_move_between_processor_and_device_or_are_refused(exact_bundle: Bundle, count: int) -> None:
    found = dict(ask_all(move_states, str(exact_bundle.directory), count))
    print(count, found)
    assert all(value is None or value <= FLOATS for value in found.values())
    if count == 40:
        assert None not in found.values()


@pytest.mark.parametrize("draft", [0, 8])
def test_conversations_pictures_and_the_prefix_cache_are_as_on_the_processor(draft: int) -> None:
    """Prompt lookup included, which decodes several tokens of an answer at once."""
    on = {device: answers(None, str(IMAGE), device, draft) for device in ("cpu", "vulkan")}
    assert on["vulkan"] == on["cpu"]
    assert on["cpu"][0] == on["cpu"][2]


def test_every_cache_format_with_and_without_flash_attention_is_used_or_refused_and_ends_no_process() -> None:
    choices = [
        {"cache_type": keys, "cache_type_v": values, "flash_attention": flash, "gpu_layers": layers}
        for keys in get_args(CacheType)
        for values in (keys, "f16")
        for flash in (True, None)
        for layers in (-1, 3)
        if values in ("f16", "bf16", "f32") or flash
    ]
    with Probe(use_decoder, str(demo_bundle()), choices) as child:
        said = [child.ask(SECONDS) for _ in choices]
    for choice, result in zip(choices, said, strict=True):
        print(choice, result.death or result.value)
    assert [(choice, result) for choice, result in zip(choices, said, strict=True) if result.death] == []


@pytest.mark.parametrize("flash", [True, False])
def test_a_plan_is_what_llama_cpp_takes(random_bundle: Bundle, flash: bool) -> None:
    found = taken(str(random_bundle.directory), -1, 1024, flash_attention=flash)
    print(found)
    figures = read_figures(random_bundle.decoder_path)
    planned = gpu_bytes(figures, 7, context=1024, batch=256, flash_attention=flash) / 2**20
    real = sum(value for kind, value in found.items() if kind in ("model", "KV", "compute"))
    print(f"planned {planned:.2f}, taken {real:.2f} MiB")
    assert real == pytest.approx(planned, rel=0.1)
    assert found["layers"] == 7


@pytest.fixture(scope="session")
def in_full(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Manifest]:
    """A bundle in q4_k_m, the very same weights as 32-bit floats, and what says so."""
    place = tmp_path_factory.mktemp("full")
    bundle = export_checkpoint(tiny, place / "bundle", quant="q4_k_m")
    stock_quantize(bundle.decoder_path, place / "exact.gguf", "f32")
    header = read_header(place / "exact.gguf")
    (table,) = [tensor for tensor in header.tensors if tensor.name == "token_embd.weight"]
    rows = EmbeddingTable("F32", header.data_start + table.offset, 4 * table.shape[-1])
    decoder = dataclasses.replace(bundle.manifest.decoder, embeddings=rows)
    return (
        bundle.directory,
        place / "exact.gguf",
        dataclasses.replace(bundle.manifest, decoder=decoder),
    )


@pytest.mark.parametrize("count", [40, 300], ids=["within the window", "beyond it"])
def test_four_bit_weights_are_as_near_to_exact_products_as_on_the_processor(
    in_full: tuple[Path, Path, Manifest], count: int
) -> None:
    """Which rounds activations to 8 bits for them, as some devices do."""
    found = distances(str(in_full[0]), in_full[1:], count)
    print(count, found)
    assert max(found["gpu"], found["half"]) <= AS_NEAR * found["cpu"] + FLOATS


@pytest.mark.parametrize("keys", get_args(CacheType))
def test_a_cache_format_is_as_near_to_exact_on_the_device_as_on_the_processor(
    exact_bundle: Bundle, keys: CacheType
) -> None:
    exact = (exact_bundle.decoder_path, exact_bundle.manifest)
    choices: list[tuple[CacheType, bool]] = [(keys, True), ("f16", True)]
    choices += [(keys, False)] if keys in FLOAT_TYPES else [("f16", False)]
    for values, flash in dict.fromkeys(choices):
        found = distances(
            str(exact_bundle.directory), exact, 80,
            cache_type=keys, cache_type_v=values, flash_attention=flash,
        )  # fmt: skip
        print(keys, values, "flash" if flash else "no flash", found)
        assert max(found["gpu"], found["half"]) <= AS_NEAR * found["cpu"] + FLOATS


def test_two_models_answer_on_one_device_and_one_may_be_closed_while_it_answers() -> None:
    expected = answers(None, str(IMAGE), "cpu", 0)[0]
    found = answer_at_once(str(demo_bundle()), str(IMAGE))
    print(found)
    assert {text for texts in found.values() for text in texts} == {expected}


def test_answers_end_at_once_when_they_or_their_model_are_closed() -> None:
    found = end_answers(str(demo_bundle()))
    print(found)
    assert found.pop("right afterwards")
    assert max(found.values()) < LATEST


def test_cancelling_a_prefill_on_the_device_ends_it_and_leaves_it_usable() -> None:
    found = cancel(str(demo_bundle()))
    print(found)
    assert found["cancelled"]
    assert found["kl"] <= FLOATS


def test_a_trial_finds_the_device_right_and_slower_than_the_processor() -> None:
    options = dataclasses.asdict(DecoderOptions(device="vulkan", gpu_layers=-1))
    result = probe(try_layers, str(demo_bundle()), options, seconds=SECONDS)
    print(result)
    assert result.value["kl"] <= LARGEST_KL
    assert result.value["gain"] < 1, "a software driver computes on the very processor"


def test_a_driver_that_ends_each_process_that_loads_it_leaves_the_processor_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp loads every driver, whatever it is asked."""
    source, library, driver = (tmp_path / name for name in ("bad.c", "libbad.so", "bad.json"))
    source.write_text("#include <stdlib.h>\nvoid vk_icdGetInstanceProcAddr(void) { abort(); }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    driver.write_text(
        json.dumps(
            {"file_format_version": "1.0.0", "ICD": {"library_path": str(library), "api_version": "1.3.0"}}
        )
    )
    monkeypatch.setenv("VK_DRIVER_FILES", str(driver))
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "ayaedge"]
    asked = [*command, "ask", "--image", str(IMAGE), "What number is at the bottom left?"]
    for arguments in (asked, [*asked, "--device", "cpu"]):
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert "2675" in done.stdout
    named = subprocess.run([*asked, "--device", "vulkan"], capture_output=True, text=True, check=False)
    assert named.returncode == 1
    assert "vulkan does not work on this machine: it ended the process" in " ".join(named.stderr.split())
    doctor = subprocess.run([*command, "doctor"], capture_output=True, text=True, check=True).stdout
    assert "decoder on Vulkan: it ended the process that tried it (SIGABRT): left alone" in doctor


def test_a_driver_that_ends_the_process_is_an_error_if_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VK_DRIVER_FILES", str(SWIFTSHADER))
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path))
    with pytest.raises(BackendError, match="ended the process that tried it"):
        probe(answers, None, str(IMAGE), "vulkan", 0, seconds=SECONDS)
    assert probe(answers, None, str(IMAGE), "auto", 0, seconds=SECONDS).value[0] == "2675"


def test_tune_compares_the_device_with_all_half_and_prompts_alone_and_the_fastest_answers(
    tmp_path: Path,
) -> None:
    cache = CacheOptions(directory=tmp_path)
    bundle = verified(read_bundle(demo_bundle()), cache.root)
    profile, trials = tune(bundle, DecoderOptions(), cache=cache)
    every = read_figures(bundle.decoder_path).layers + 1
    measured = {
        (one.settings.device, one.settings.gpu_layers, one.settings.offload_prompts): one.work_seconds
        for one in trials
        if one.fault is None and one.death is None
    }
    print(measured)
    assert set(measured) == {
        ("cpu", 0, False), ("vulkan", every, False), ("vulkan", every // 2, False), ("vulkan", 0, True),
    }  # fmt: skip
    last = trials[-2:]  # batches of two sizes, in the best place
    assert profile.settings == min(last, key=lambda trial: trial.work_seconds or 0.0).settings
    assert profile.settings is not None
    assert cache.root is not None
    save_profile(profile_path(cache.root, bundle), profile)
    placed = check_devices(bundle, resolve(bundle, cache=cache), cache.root).decoder
    assert placed.uses_gpu == (profile.settings.device != "cpu")


@pytest.mark.parametrize("count", [20, 300])
def test_prompts_alone_on_the_device_give_the_processors_answers(count: int) -> None:
    options = {"offload_prompts": True, "flash_attention": False}  # as on the processor
    with Probe(compare, str(demo_bundle()), [0], count, options) as child:
        result = child.ask(SECONDS)
    assert result.death is None, result.said
    print(count, result.value)
    assert result.value["layers"] == 0
    assert (result.value["kl"] <= QUANTIZED, result.value["same"]) == (True, True)
    assert (result.value["kl"] > 0) == (count >= 32), "shorter batches stay on the processor"
