"""Which devices are taken, what is said where one is missing, and what fits on made-up graphics processors."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any, get_args

import pytest

from ayaedge import InvalidOptionError, VisionOptions
from ayaedge.decoder.gguf_header import DecoderFigures
from ayaedge.hardware.devices import (
    BACKENDS,
    Device,
    Gpu,
    choose_decoder,
    decoder_backends,
    decoder_command,
    decoder_gpus,
    fewer_layers,
)
from ayaedge.hardware.vision_devices import (
    BUILT_IN,
    CPU_PROVIDER,
    KINDS,
    PLUGGED_IN,
    VisionDevice,
    choose_vision,
    vision_command,
    vision_devices,
    vision_providers,
)
from ayaedge.planning.gpu_plan import gpu_bytes, plan_gpu, reserve, work_bytes

GB = 1_000_000_000
CUDA, COREML = (VisionDevice(kind, 0, "made up") for kind in ("cuda", "coreml"))
OPENVINO = VisionDevice("openvino", 0, "Arc")
OPENVINO_CPU = VisionDevice("openvino", 1, "Core", is_gpu=False)
SHARED = VisionDevice("webgpu", 0, "Radeon 780M", integrated=True)
OWN = VisionDevice("webgpu", 1, "Radeon RX 7600S")
ALL = [OPENVINO, OPENVINO_CPU, SHARED, OWN, COREML, CUDA]

WIDE_DOWN = {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31}
"""Blocks whose values and down projections have six bits."""
AYA_8B = DecoderFigures(
    architecture="cohere2", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, feed_forward=14336,
    vocab_size=256_000, window=4096, window_pattern=(True, True, True, False) * 8,
    layer_bytes=tuple(138_919_936 if block in WIDE_DOWN else 122_699_776 for block in range(32)),
    other_bytes=860_176_384,
)  # fmt: skip
"""Aya Vision 8B in q4_k_m."""
VISION_FP16 = 1_208_000_000


def gpu(name: str, backend: str, *, integrated: bool = False) -> Gpu:
    return Gpu(name, "made up", backend, 8 * GB, 8 * GB, integrated)


class TestVision:
    @pytest.mark.parametrize(
        ("available", "order"),
        [
            (ALL, [CUDA, COREML, OWN, SHARED, OPENVINO]),
            ([OPENVINO, SHARED, COREML], [COREML, SHARED, OPENVINO]),
            ([OPENVINO, SHARED], [SHARED, OPENVINO]),
            ([OPENVINO], [OPENVINO]),
            ([OPENVINO_CPU], []),
            ([], []),
        ],
    )
    def test_auto_takes_gpus_alone_the_best_first_and_integrated_ones_last(
        self, available: list[VisionDevice], order: list[VisionDevice]
    ) -> None:
        assert choose_vision("auto", available) == order

    @pytest.mark.parametrize("device", [*KINDS, "metal", "vulkan"])
    def test_a_device_that_is_there_is_taken(self, device: str) -> None:
        (found,) = choose_vision(device, ALL)
        assert found.kind == {"metal": "coreml", "vulkan": "webgpu"}.get(device, device)

    def test_a_word_means_the_first_of_its_kind_that_is_not_integrated_and_a_number_any(self) -> None:
        assert choose_vision("webgpu", ALL) == [OWN]
        assert choose_vision("webgpu:0", ALL) == [SHARED]
        assert choose_vision("webgpu:1", ALL) == [OWN]
        assert choose_vision("openvino", [OPENVINO_CPU]) == [OPENVINO_CPU]
        with pytest.raises(InvalidOptionError, match=r"there is only webgpu:0 \(Radeon 780M\), webgpu:1"):
            choose_vision("webgpu:2", ALL)

    def test_of_two_gpus_that_webgpu_cannot_tell_apart_the_second_is_refused(self) -> None:
        twins = [OWN, replace(OWN, number=2)]
        with pytest.raises(InvalidOptionError, match="hide that one"):
            choose_vision("webgpu:1", twins)

    def test_the_processor_alone_can_be_asked_for(self) -> None:
        assert choose_vision("cpu", ALL) == []

    @pytest.mark.parametrize(
        ("device", "package"),
        [
            ("cuda", "onnxruntime-gpu"),
            ("webgpu", "onnxruntime-ep-webgpu"),
            ("openvino", "onnxruntime-ep-openvino"),
            ("coreml", "onnxruntime"),
            ("metal", "onnxruntime"),
        ],
    )
    def test_a_device_asked_for_by_name_and_missing_is_an_error_with_the_command(
        self, device: str, package: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("ayaedge.ort.plugin_devices", lambda: ())
        with pytest.raises(InvalidOptionError) as caught:
            choose_vision(device, [])
        assert re.search(rf"pip install {package}(?![-\w])", str(caught.value))
        assert ("pip uninstall -y onnxruntime" in str(caught.value)) == (
            package in ("onnxruntime", "onnxruntime-gpu")
        )

    def test_vulkan_is_replaced_and_that_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            assert choose_vision("vulkan", [CUDA]) == []
        assert "has no Vulkan" in caplog.text
        assert choose_vision("vulkan", ALL)[0].kind == "webgpu"

    def test_every_kind_has_a_provider_and_a_word(self) -> None:
        assert set(KINDS) == {*BUILT_IN, *PLUGGED_IN} < set(get_args(Device))

    @pytest.mark.parametrize(
        "device", ["directml", "webgpu:", "webgpu:x", "webgpu:-1", "cpu:1", "vulkan:1", 3, ":"]
    )
    def test_what_is_no_device_is_refused(self, device: Any) -> None:
        with pytest.raises(InvalidOptionError, match="webgpu:1"):
            VisionOptions(device=device)


class TestDecoder:
    def test_auto_takes_all_of_the_best_kind(self, caplog: pytest.LogCaptureFixture) -> None:
        first, second = gpu("CUDA0", "cuda"), gpu("CUDA1", "cuda")
        with caplog.at_level(logging.INFO):
            assert choose_decoder("auto", [gpu("Vulkan0", "vulkan"), first, second]) == [first, second]
        assert "CUDA0, CUDA1" in caplog.text

    def test_an_integrated_one_is_taken_only_where_there_is_no_other(self) -> None:
        shared, own = gpu("Vulkan0", "vulkan", integrated=True), gpu("Vulkan1", "vulkan")
        assert choose_decoder("auto", [shared, own]) == choose_decoder("vulkan", [shared, own]) == [own]
        assert choose_decoder("auto", [shared]) == choose_decoder("vulkan", [shared]) == [shared]

    def test_a_kind_that_cannot_be_asked_for_is_found_by_auto(self) -> None:
        assert choose_decoder("auto", [gpu("ROCm0", "rocm")])[0].name == "ROCm0"
        with pytest.raises(InvalidOptionError):
            choose_decoder("cuda", [gpu("ROCm0", "rocm")])

    @pytest.mark.parametrize("device", ["auto", "cpu", "webgpu", "openvino", "coreml"])
    def test_without_a_gpu_the_processor_is_used(self, device: Device) -> None:
        assert choose_decoder(device, []) == []

    def test_devices_of_the_vision_tower_leave_the_decoder_on_the_processor(self) -> None:
        gpus = [gpu("CUDA0", "cuda"), gpu("MTL0", "metal")]
        assert choose_decoder("webgpu", gpus) == choose_decoder("openvino", gpus) == []
        assert choose_decoder("cpu", gpus) == []
        assert choose_decoder("coreml", gpus) == choose_decoder("metal", gpus) == [gpus[1]]

    @pytest.mark.parametrize("device", BACKENDS)
    def test_a_device_asked_for_by_name_and_missing_is_an_error_with_the_build(self, device: Device) -> None:
        with pytest.raises(InvalidOptionError) as caught:
            choose_decoder(device, [gpu("SYCL0", "sycl")])
        assert f"-DGGML_{device.upper()}=on" in str(caught.value)


def test_commands_are_in_the_shell_of_the_system() -> None:
    assert decoder_command("cuda", "Linux").startswith('CMAKE_ARGS="-DGGML_CUDA=on" pip install ')
    assert decoder_command("vulkan", "Windows").startswith('$env:CMAKE_ARGS="-DGGML_VULKAN=on"; pip install ')
    assert vision_command("cuda", "Linux").endswith(" && pip install onnxruntime-gpu")
    assert vision_command("cuda", "Windows").endswith("; pip install onnxruntime-gpu")
    assert vision_command("webgpu", "Windows") == vision_command("webgpu", "Linux")


def test_the_libraries_answer_what_they_can_do() -> None:
    assert "cpu" in decoder_backends()
    assert CPU_PROVIDER in vision_providers()
    for found in decoder_gpus():
        assert found.backend in decoder_backends()
        assert 0 <= found.free_bytes <= found.total_bytes
    for device in vision_devices():
        assert device.provider in vision_providers()


class TestPlan:
    @pytest.mark.parametrize("vision_bytes", [VISION_FP16, None])
    @pytest.mark.parametrize("context", [2048, 8192, 16384])
    @pytest.mark.parametrize("size", [0, 1, 2, 4, 6, 8, 10, 12, 16])
    def test_it_fits_and_one_layer_more_would_not(
        self, size: int, context: int, vision_bytes: int | None
    ) -> None:
        free = size * GB
        plan = plan_gpu(AYA_8B, free_bytes=free, context=context, vision_bytes=vision_bytes)
        room = free - reserve(free)
        assert plan.bytes_used <= max(room, 0)
        assert plan.free_bytes == free
        if plan.layers < plan.of:
            assert gpu_bytes(AYA_8B, plan.layers + 1, context=context) > room

    @pytest.mark.parametrize(
        ("size", "layers", "vision"), [(4, 17, False), (6, 29, False), (8, 33, False), (16, 33, True)]
    )
    def test_devices_of_usual_sizes_hold_what_can_be_reckoned_by_hand(
        self, size: int, layers: int, vision: bool
    ) -> None:
        plan = plan_gpu(AYA_8B, free_bytes=size * GB, context=8192, vision_bytes=VISION_FP16)
        assert (plan.layers, plan.of, plan.vision) == (layers, 33, vision)

    def test_everything_takes_weights_cache_and_work_space(self) -> None:
        weights = sum(AYA_8B.layer_bytes) + AYA_8B.other_bytes
        whole = gpu_bytes(AYA_8B, 33, context=8192)
        assert whole == weights + AYA_8B.kv_bytes(8192) + work_bytes(AYA_8B, context=8192)
        assert gpu_bytes(AYA_8B, 99, context=8192) == whole

    def test_the_output_layer_goes_first_and_then_the_last_blocks(self) -> None:
        uneven = replace(AYA_8B, layer_bytes=(GB,) * 31 + (1000,))
        one, two, three = (gpu_bytes(uneven, layers, context=256) for layers in (1, 2, 3))
        cached = AYA_8B.kv_bytes(256) // 32
        assert gpu_bytes(uneven, 0, context=256) == 0
        assert one > AYA_8B.other_bytes
        assert two - one == 1000 + cached
        assert three - two == GB + cached

    @pytest.mark.parametrize(
        ("context", "batch", "mebibytes"), [(2048, 512, 128.02), (8192, 256, 70.01), (16384, 512, 156.02)]
    )
    def test_the_work_space_is_what_llama_cpp_reserves(
        self, context: int, batch: int, mebibytes: float
    ) -> None:
        reserved = mebibytes * 2**20  # llama.cpp 0.3.36, "compute buffer size", measured
        assert reserved < work_bytes(AYA_8B, context=context, batch=batch) < 1.05 * reserved

    def test_without_flash_attention_the_scores_of_all_heads_need_space(self) -> None:
        reserved = 592.01 * 2**20
        assert reserved < work_bytes(AYA_8B, context=8192, flash_attention=False) < 1.15 * reserved
        plans = [
            plan_gpu(AYA_8B, free_bytes=6 * GB, context=8192, flash_attention=flash, vision_bytes=None)
            for flash in (True, False)
        ]
        assert plans[0].layers > plans[1].layers

    def test_a_smaller_cache_leaves_room_for_more_layers(self) -> None:
        plans = [
            plan_gpu(
                AYA_8B, free_bytes=6 * GB, context=16384, cache_element_bytes=width, vision_bytes=None
            ).layers
            for width in (4.0, 2.0, 34 / 32)
        ]
        assert plans == sorted(plans)
        assert plans[0] < plans[-1]

    def test_the_tower_takes_what_the_decoder_cannot_use(self) -> None:
        plan = plan_gpu(AYA_8B, free_bytes=GB, context=8192, vision_bytes=50_000_000)
        assert (plan.layers, plan.vision) == (0, True)

    def test_reasons_say_what_fits(self) -> None:
        def reason(free_bytes: int, vision_bytes: int | None = VISION_FP16) -> str:
            return plan_gpu(AYA_8B, free_bytes=free_bytes, context=8192, vision_bytes=vision_bytes).reason

        assert reason(16 * GB) == (
            "the whole decoder fits in 16.0 GB of graphics memory; the vision tower (1.8 GB) fits beside it"
        )
        assert reason(4 * GB).startswith("17 of 33 layers fit in 4.0 GB")
        assert reason(4 * GB).endswith("(1.8 GB) does not fit beside it")
        assert reason(0).startswith("no layer fits in 0.0 GB")
        assert reason(8 * GB, None).endswith("the vision tower runs elsewhere")


def test_fewer_and_fewer_layers_end_at_none() -> None:
    tried = [33]
    while tried[-1]:
        tried.append(fewer_layers(tried[-1]))
    assert tried == [33, 24, 18, 13, 9, 6, 4, 3, 2, 1, 0]
    assert fewer_layers(0) == 0
