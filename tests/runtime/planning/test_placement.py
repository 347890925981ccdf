"""Which half runs where, with made-up graphics processors: nothing here needs one."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ayaedge import (
    AyaVision,
    BackendError,
    BundleError,
    CacheOptions,
    DecoderOptions,
    InvalidOptionError,
    VisionOptions,
)
from ayaedge.bundle import Bundle, demo_bundle, read_bundle
from ayaedge.decoder import decoder as decoder_module
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.gguf_header import DecoderFigures
from ayaedge.decoder.weights import Weights
from ayaedge.hardware.devices import Gpu
from ayaedge.hardware.machine import Memory
from ayaedge.hardware.probes import Result
from ayaedge.hardware.speeds import Speeds
from ayaedge.hardware.vision_devices import VisionDevice
from ayaedge.manifest import FileInfo
from ayaedge.planning import placement, question_plan
from ayaedge.planning.device_check import check_devices, known_verdicts
from ayaedge.planning.placement import resolve
from ayaedge.planning.profile import Profile, Settings, profile_path, save_profile
from ayaedge.planning.question_plan import plan_question

CUDA = VisionDevice("cuda", 0, "made up")
LARGE = DecoderFigures(
    architecture="cohere2", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, feed_forward=14336,
    vocab_size=256000, window=4096, window_pattern=(True, True, True, False) * 8,
    layer_bytes=(138_919_936, 122_699_776) * 16, other_bytes=860_176_384,
)  # fmt: skip
"""Aya Vision 8B as q4_k_m."""
DEMO = read_bundle(demo_bundle())
EIGHT = Gpu("CUDA0", "made up", "cuda", 9 * 10**9, 8 * 10**9)


@pytest.fixture
def portable() -> Bundle:
    """A bundle whose vision tower runs anywhere, of the 8B's size."""
    manifest = DEMO.manifest
    formats = dataclasses.replace(manifest.formats, vision="fp16")
    files = {**manifest.files, "vision.onnx.data": FileInfo(1_208_000_000, "")}
    decoder = dataclasses.replace(manifest.decoder, context_length=8192)
    return Bundle(
        DEMO.directory,
        dataclasses.replace(manifest, formats=formats, files=files, decoder=decoder),
        stamps={},
    )


def made_up(
    monkeypatch: pytest.MonkeyPatch, gigabytes: float, devices: tuple[VisionDevice, ...] = (CUDA,)
) -> None:
    gpu = Gpu("CUDA0", "made up", "cuda", int(gigabytes * 1.1e9), int(gigabytes * 1e9))
    monkeypatch.setattr(placement, "decoder_gpus", lambda: [gpu] if gigabytes else [])
    monkeypatch.setattr(placement, "vision_devices", lambda: list(devices))
    monkeypatch.setattr(placement, "read_figures", lambda _: LARGE)


@pytest.mark.parametrize(
    ("gigabytes", "layers", "vision"), [(4, 17, "cpu"), (6, 29, "cpu"), (8, 33, "cpu"), (16, 33, "auto")]
)
def test_layers_go_to_the_graphics_processor_first_then_the_tower(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch, gigabytes: float, layers: int, vision: str
) -> None:
    made_up(monkeypatch, gigabytes)
    placed = resolve(portable, "auto")
    assert (placed.decoder.gpu_layers, placed.vision.device) == (layers, vision)


def test_without_a_graphics_processor_nothing_is_placed(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, 0)
    placed = resolve(portable, "auto")
    assert (placed.decoder.gpu_layers, placed.vision.device) == (None, "auto")


def test_options_of_a_half_override_the_word_for_both(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, 4)
    placed = resolve(portable, "cuda", DecoderOptions(gpu_layers=3), VisionOptions(device="cpu"))
    assert (placed.decoder.gpu_layers, placed.vision.device) == (3, "cpu")
    placed = resolve(portable, "cuda")
    assert (placed.decoder.gpu_layers, placed.vision.device) == (
        17,
        "cpu",
    )  # it does not fit beside the layers
    placed = resolve(portable, "auto", DecoderOptions(), VisionOptions(device="cuda"))
    assert (placed.decoder.gpu_layers, placed.vision.device) == (
        6,
        "cuda",
    )  # named alone, so its memory is set aside
    placed = resolve(portable, "cpu")
    assert (placed.decoder.gpu_layers, placed.vision.device) == (None, "cpu")


def test_what_was_tuned_is_filled_in_before_devices(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made_up(monkeypatch, 4)
    cache = CacheOptions(directory=tmp_path)
    saved = Profile(Speeds(1.0, 0.1, 0.0, 0.2, 0.0), Settings(False, 3, 2, 128))
    save_profile(profile_path(tmp_path / "ayaedge", portable), saved)
    placed = resolve(portable, cache=cache)
    assert placed.profile == saved
    assert (placed.decoder.threads, placed.decoder.ubatch_size) == (3, 128)
    assert placed.gpu is not None
    assert placed.gpu.layers == placed.decoder.gpu_layers == 17
    assert resolve(portable, decoder=DecoderOptions(threads=1), cache=cache).decoder.threads_batch == 1
    assert resolve(portable).profile is None


def test_one_module_alone_reads_profiles_and_asks_for_graphics_processors() -> None:
    root = Path(placement.__file__).parents[1]
    for name, callers in {
        "load_profile": set(),
        "decoder_gpus": {"weights", "doctor", "driver_trial"},
    }.items():
        texts = {path.stem: path.read_text("utf-8") for path in root.rglob("*.py")}
        found = {stem for stem, text in texts.items() if re.search(rf"(?<!def )\b{name}\(", text)}
        assert found == {"placement"} | callers


def test_an_int8_tower_stays_on_the_processor_when_a_device_is_named_for_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up(monkeypatch, 16)
    assert resolve(DEMO, "cuda").vision.device == "cpu"


def test_a_missing_device_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up(monkeypatch, 0)
    with pytest.raises(InvalidOptionError, match=r"-DGGML_CUDA=on"):
        resolve(DEMO, "cuda")
    with pytest.raises(InvalidOptionError, match=r"-DGGML_VULKAN=on"):
        AyaVision.load(device="vulkan")


class CrampedWeights(Weights):
    """Weights on graphics processors with memory for two layers only."""

    tried: list[int] = []  # noqa: RUF012
    holds = 2

    def __init__(self, path: Path, *, repack: bool, gpus: Sequence[Gpu] = (), gpu_layers: int = 0):
        self.tried.append(gpu_layers)
        if gpu_layers > self.holds or gpu_layers < 0:
            raise BundleError("llama.cpp cannot load it: unable to allocate CUDA0 buffer")
        super().__init__(path, repack=repack)
        self.gpu_layers = gpu_layers


@pytest.fixture
def cramped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders on such processors, which have six layers to put there."""
    monkeypatch.setattr(CrampedWeights, "tried", [])
    monkeypatch.setattr("ayaedge.decoder.decoder.Weights", CrampedWeights)
    monkeypatch.setattr(
        "ayaedge.decoder.decoder.choose_layers",
        lambda path, options: (6 if options.gpu_layers < 0 else options.gpu_layers, []),
    )


@pytest.mark.parametrize(("asked", "tried"), [(4, [4, 3, 2]), (-1, [6, 4, 3, 2]), (2, [2]), (0, [0])])
def test_out_of_memory_falls_back_to_fewer_layers_and_says_so_once(
    asked: int, tried: list[int], caplog: pytest.LogCaptureFixture, cramped: None
) -> None:
    options = DecoderOptions(gpu_layers=asked)
    with (
        caplog.at_level(logging.WARNING),
        Decoder(DEMO.decoder_path, DEMO.manifest, options) as decoder,
    ):
        decoder.decode_tokens([300, 301])
    assert CrampedWeights.tried == tried
    messages = [record.getMessage() for record in caplog.records if "graphics memory" in record.getMessage()]
    assert len(messages) == (len(tried) > 1)
    assert all("2 are there now" in message for message in messages)


def test_a_file_that_cannot_be_loaded_at_all_is_still_an_error(
    monkeypatch: pytest.MonkeyPatch, cramped: None
) -> None:
    monkeypatch.setattr(CrampedWeights, "holds", -2)
    with pytest.raises(BundleError, match="unable to allocate"):
        Decoder(DEMO.decoder_path, DEMO.manifest, DecoderOptions(gpu_layers=4))
    assert decoder_module.fewer_layers(1) == 0


@pytest.mark.parametrize("device", ["openvino", "coreml", "webgpu"])
def test_a_device_for_the_tower_alone_that_is_missing_is_an_error(device: Any) -> None:
    with pytest.raises(InvalidOptionError, match="pip install onnxruntime"):
        AyaVision.load(device=device)


def test_a_device_for_the_tower_alone_needs_a_tower_that_can_run_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_up(monkeypatch, 0, (VisionDevice("openvino", 0, "made up"),))
    with pytest.raises(InvalidOptionError, match='vision="fp16"'):
        resolve(DEMO, "openvino")


def test_layers_on_the_processor_are_a_contradiction() -> None:
    with pytest.raises(InvalidOptionError, match="the device is cpu"):
        AyaVision.load(device="cpu", decoder=DecoderOptions(gpu_layers=4))


def test_a_plan_shows_what_goes_to_graphics_memory(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made_up(monkeypatch, 8)
    monkeypatch.setattr("ayaedge.planning.question_plan.read_figures", lambda _: LARGE)
    monkeypatch.setattr("ayaedge.planning.device_check.choose_layers", lambda *_: (33, [EIGHT]))
    cache = CacheOptions(directory=tmp_path)
    gpu = plan_question(portable, [(640, 480)], cache=cache)
    assert gpu.devices == ("decoder on CUDA0: not tried yet: the first question will",)
    assert gpu.gpu is not None
    assert (gpu.gpu.layers, gpu.gpu.vision) == (33, False)
    cpu = plan_question(portable, [(640, 480)], device="cpu", cache=cache)
    assert cpu.gpu is None
    assert gpu.memory.decoder == LARGE.other_bytes
    assert cpu.memory.decoder == LARGE.weight_bytes
    assert gpu.memory.vision == cpu.memory.vision > 1_208_000_000


@pytest.mark.parametrize("shared", [True, False], ids=["main memory", "its own"])
def test_memory_that_a_gpu_shares_with_the_processor_is_counted_once(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shared: bool
) -> None:
    made_up(monkeypatch, 8)
    gpu = dataclasses.replace(EIGHT, integrated=shared)
    monkeypatch.setattr(placement, "decoder_gpus", lambda: [gpu])
    monkeypatch.setattr("ayaedge.planning.question_plan.read_figures", lambda _: LARGE)
    monkeypatch.setattr("ayaedge.planning.device_check.choose_layers", lambda *_: (33, [gpu]))
    for module in (placement, question_plan):
        monkeypatch.setattr(module, "memory", lambda: Memory(16 * 10**9, 5 * 10**9))
    cost = plan_question(portable, [(640, 480)], cache=CacheOptions(directory=tmp_path))
    assert cost.gpu is not None
    whole = plan_question(
        portable, [(640, 480)], device="cpu", cache=CacheOptions(directory=tmp_path)
    ).needed_bytes
    if shared:
        assert cost.gpu.free_bytes == 5 * 10**9, "what the processor has left, not what the driver says"
        assert cost.gpu.layers < 33
        assert cost.needed_bytes == cost.memory.total + cost.gpu.bytes_used
        twice = LARGE.other_bytes + LARGE.kv_bytes(
            8192
        )  # output beside embeddings; the cache of a whole context
        assert whole < cost.needed_bytes < whole + twice
    else:
        assert cost.gpu.layers == 33
        assert cost.needed_bytes == cost.memory.total


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Result({"kl": 1e-7, "gain": 3.0}), "decoder on CUDA0: right, 3 x the CPU"),
        (Result({"kl": 1e-7, "gain": 0.5}), "decoder on CUDA0: right, 0.5 x the CPU: left alone by auto"),
        (
            Result(death="SIGABRT"),
            "decoder on CUDA0: it ended the process that tried it (SIGABRT): left alone",
        ),
    ],
    ids=["right", "slow", "dead"],
)
def test_a_plan_knows_what_was_tried_in_the_words_of_doctor(
    portable: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, result: Result, said: str
) -> None:
    made_up(monkeypatch, 8)
    monkeypatch.setattr("ayaedge.planning.question_plan.read_figures", lambda _: LARGE)
    monkeypatch.setattr("ayaedge.planning.device_check.choose_layers", lambda *_: (33, [EIGHT]))
    monkeypatch.setattr("ayaedge.planning.device_check.probe", lambda *_, seconds: result)
    cache = CacheOptions(directory=tmp_path)
    check_devices(portable, resolve(portable, cache=cache), cache.root)
    cost = plan_question(portable, [(640, 480)], cache=cache)
    assert cost.devices == (said,) == tuple(map(str, known_verdicts(cache.root)))
    assert (cost.gpu is None) == ("left alone" in said)
    assert cost.memory.decoder == (LARGE.weight_bytes if cost.gpu is None else LARGE.other_bytes)
    if result.death:
        with pytest.raises(BackendError, match="ended the process"):
            plan_question(portable, [(640, 480)], device="cuda", cache=cache)
