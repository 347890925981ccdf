"""The vision tower through WebGPU, for real, on a software driver that is no GPU and computes like one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from ayaedge import BundleError, InvalidOptionError
from ayaedge.bundle import Bundle, demo_bundle, read_bundle
from ayaedge.hardware.probes import Probe
from ayaedge.manifest import VISION
from ayaedge_export.exporter import export_checkpoint
from on_webgpu import attention_error, compare, refusal, seen, software_gpu

__all__ = ["software_gpu"]
SECONDS = 300.0
FP32 = 1e-4
"""Of the largest activation: what other orders of summation may make of 32-bit floats."""


def ask(function: Any, *arguments: Any) -> Any:
    with Probe(function, *arguments) as child:
        answer = child.ask(SECONDS)
    assert answer.death is None, answer
    return answer.value


def test_the_trained_tower_is_as_on_the_processor_and_one_bundle_serves_both(
    portable_bundle: Bundle, exact_bundle: Bundle, software_gpu: None
) -> None:
    with Probe(compare, [str(exact_bundle.directory), str(portable_bundle.directory)]) as child:
        exact, mixed = (child.ask(SECONDS).value for _ in range(2))
    assert (exact["cpu"], exact["gpu"]) == ("cpu, fp32", "webgpu:0, fp32")
    assert exact["off"] <= FP32
    assert (mixed["cpu"], mixed["gpu"]) == ("cpu, int8", "webgpu:0, fp32"), "this driver has no 16-bit floats"
    assert mixed["cosine"] > 0.999


def test_devices_are_listed_and_a_number_that_is_not_there_is_refused(software_gpu: None) -> None:
    (device,) = ask(seen)
    assert (device["name"], device["is_gpu"]) == ("webgpu:0", True)
    assert "software" in device["description"]
    assert "only webgpu:0" in ask(refusal, str(demo_bundle()), "webgpu:1")


def test_the_8_bit_forms_are_refused_because_webgpus_fused_attention_is_wrong(software_gpu: None) -> None:
    assert 'vision="fp16"' in ask(refusal, str(demo_bundle()), "webgpu")
    with Probe(attention_error, [16, 64]) as child:
        answers = [child.ask(SECONDS) for _ in range(2)]
    few, many = (answer.value for answer in answers)
    assert few < 1e-5
    assert many > 0.01, "it is right now: the 8-bit forms can be allowed"


def test_a_bundle_says_which_graph_is_for_what(portable_bundle: Bundle, tiny: Path, tmp_path: Path) -> None:
    manifest = portable_bundle.manifest
    assert (manifest.formats.vision, manifest.formats.vision_for_gpus) == ("int8", ("fp16", "fp32"))
    assert manifest.gpu_graphs == {"fp16": "vision.fp16.onnx", "fp32": "vision.fp32.onnx"}
    assert {"vision.onnx", *manifest.gpu_graphs.values()} < set(manifest.files)
    alone = export_checkpoint(tiny, tmp_path / "alone", vision="int8")
    assert (alone.directory / VISION).read_bytes() == (portable_bundle.directory / VISION).read_bytes()
    assert "vision_for_gpus" not in (alone.directory / "manifest.json").read_text("utf-8")
    assert alone.manifest.gpu_graphs == {}


def test_a_bundle_without_a_graph_that_it_names_is_refused(portable_bundle: Bundle, tmp_path: Path) -> None:
    files = {
        name: info for name, info in portable_bundle.manifest.files.items() if name != "vision.fp16.onnx"
    }
    broken = dataclasses.replace(portable_bundle.manifest, files=files)
    for name in broken.files:
        (tmp_path / name).hardlink_to(portable_bundle.directory / name)
    (tmp_path / "manifest.json").write_text(broken.to_json(), "utf-8")
    with pytest.raises(BundleError, match=r"vision\.fp16\.onnx is not listed"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("formats", [["int8", "int8-block"], ["fp16", "fp8"]])
def test_formats_that_make_no_bundle_are_refused(tiny: Path, formats: list[str], tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match="vision"):
        export_checkpoint(tiny, tmp_path / "b", vision=formats)
