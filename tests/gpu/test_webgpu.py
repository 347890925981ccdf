"""The vision tower on the real WebGPU provider, on a software driver: `make gpu`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ayaedge.hardware.probes import Probe, probe
from ayaedge.vision.device_trial import try_tower
from ayaedge_export.checkpoint.spec import vision_tensors
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.synthetic.bundle import MODELS
from ayaedge_export.synthetic.random_weights import RandomTensors, RandomWeights
from ayaedge_export.vision.graph import write_vision_graph
from on_webgpu import compare, compare_graph, product_error, software_gpu
from random_checkpoint import Shape, write_random_checkpoint

__all__ = ["software_gpu"]
pytestmark = pytest.mark.gpu
SECONDS = 14_400.0
"""A tile of the whole tower took 13 minutes on a quiet Zen 4 and 25 on a Xeon, beside other work more than an hour."""
FP32 = 1e-4
SHAPES = {
    "three heads": Shape(),
    "one layer, wide tiles": Shape(
        vision={"num_hidden_layers": 1, "image_size": 84, "hidden_size": 64, "num_attention_heads": 4}
    ),
    "no division by 4": Shape(
        vision={"hidden_size": 54, "num_attention_heads": 3, "intermediate_size": 78}, adapter_size=70
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_random_towers_are_as_on_the_processor(
    shape: str, tiny: Path, tmp_path: Path, software_gpu: None
) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "c", tiny, SHAPES[shape])
    bundle = export_checkpoint(checkpoint, tmp_path / "b", vision="fp32")
    with Probe(compare, [str(bundle.directory)]) as child:
        found = child.ask(SECONDS).value
    print(shape, found)
    assert found["gpu"] == "webgpu:0, fp32"
    assert found["off"] <= FP32


def test_weights_beyond_the_limit_of_a_binding_are_split_by_the_provider(software_gpu: None) -> None:
    found = probe(product_error, 200, 128 << 20, seconds=SECONDS)
    print(found)
    assert found.value < FP32


def test_a_trial_finds_the_software_driver_right_and_slow(portable_bundle: Any, software_gpu: None) -> None:
    found = probe(try_tower, str(portable_bundle.directory), "webgpu:0", seconds=SECONDS).value
    print(found)
    assert found["form"] == "fp32"
    assert found["cosine"] > 0.9999999
    assert found["gain"] < 1


def layers_of_the_8b(count: int) -> Any:
    """One is what `make gpu` affords; all 27 with the connector, 2.4 GB, take a quarter of an hour for one tile."""
    return pytest.param(count, marks=[pytest.mark.slow] if count > 1 else [])


@pytest.mark.parametrize("layers", [layers_of_the_8b(1), layers_of_the_8b(MODELS["8b"].vision.num_layers)])
def test_one_tile_of_the_8bs_true_shape_is_as_on_the_processor(
    layers: int, tmp_path: Path, software_gpu: None
) -> None:
    config = dataclasses.replace(MODELS["8b"].vision, num_layers=layers)
    tensors = RandomTensors(RandomWeights(0), vision_tensors(config))
    write_vision_graph(tmp_path / "vision.onnx", config, tensors.read)
    found = probe(compare_graph, str(tmp_path / "vision.onnx"), seconds=SECONDS).value
    print(found)
    assert np.isclose(found["cosine"], 1, atol=1e-4)
    assert found["off"] <= FP32
