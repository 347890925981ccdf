"""What the tests of WebGPU let run in a child, and the software driver that it runs on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ayaedge import InvalidOptionError, VisionOptions, ort
from ayaedge.bundle import read_bundle
from ayaedge.hardware.vision_devices import vision_devices
from ayaedge.vision.encoder import open_encoder

DRIVER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
"""SwiftShader, as Debian's package chromium brings it."""
SOFTWARE = {"VK_DRIVER_FILES": str(DRIVER), "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"}


@pytest.fixture
def software_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let children of this test see one GPU: a software driver with 32-bit floats only."""
    pytest.importorskip("onnxruntime_ep_webgpu", reason="the extra gpu is not installed")
    if not DRIVER.exists():
        pytest.skip("SwiftShader is not installed: Debian's package chromium has it")
    for name, value in SOFTWARE.items():
        monkeypatch.setenv(name, value)


def seen() -> list[dict[str, Any]]:
    return [{**asdict(device), "name": device.name} for device in vision_devices()]


def pixels(tile_size: int, count: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (count, 3, tile_size, tile_size)).astype(np.float32)


def compare(directories: list[str]) -> Iterator[dict[str, Any]]:
    """Of each bundle: what the GPU's embeddings are off, against the processor's largest, and what ran where."""
    for directory in directories:
        bundle = read_bundle(directory)
        tiles = pixels(bundle.manifest.tiling.tile_size)
        results, places = [], []
        for device in ("cpu", "webgpu"):
            encoder = open_encoder(bundle, VisionOptions(device=device))
            results.append(encoder.run(tiles))
            places.append(encoder.place)
            encoder.close()
        cpu, gpu = results
        cosine = float((cpu * gpu).sum() / np.linalg.norm(cpu) / np.linalg.norm(gpu))
        yield {
            "off": float(abs(gpu - cpu).max() / abs(cpu).max()),
            "cosine": cosine,
            "cpu": places[0],
            "gpu": places[1],
        }


def compare_graph(path: str) -> dict[str, float]:
    """One tile through a graph that is no bundle's: what the GPU's embeddings are off."""
    runtime, results = ort.library(), []
    for on_gpu in (False, True):
        settings = runtime.SessionOptions()
        if on_gpu:
            ort.add_plugin_device(settings, ort.plugin_devices()[0], {})
        session = runtime.InferenceSession(path, settings)
        results.append(session.run(None, {"pixel_values": pixels(session.get_inputs()[0].shape[2])})[0])
        del session
    cpu, gpu = results
    cosine = float((cpu * gpu).sum() / np.linalg.norm(cpu) / np.linalg.norm(gpu))
    return {"off": float(abs(gpu - cpu).max() / abs(cpu).max()), "cosine": cosine}


def refusal(directory: str, device: str) -> str:
    try:
        open_encoder(read_bundle(directory), VisionOptions(device=device)).close()
    except InvalidOptionError as error:
        return str(error)
    return "it ran"


def attention_error(rows: list[int]) -> Iterator[float]:
    """How far WebGPU's fused attention, which the 8-bit graphs use, is off for so many rows each."""
    rng, inputs = np.random.default_rng(0), ["q", "k", "v"]
    node = helper.make_node("MultiHeadAttention", inputs, ["y"], domain="com.microsoft", num_heads=4)
    for count in rows:
        arrays = rng.standard_normal((3, 1, count, 64)).astype(np.float32)
        exact, found = _run(node, dict(zip(inputs, arrays, strict=True)), {})
        yield float(abs(found - exact).max() / abs(exact).max())


def product_error(megabytes: int, limit: int | None = None) -> float:
    """How far a product with weights of that size is off, where a binding may have `limit` bytes."""
    rng, depth = np.random.default_rng(0), 1024
    weights = rng.standard_normal((depth, megabytes * 2**20 // 4 // depth)).astype(np.float32)
    x = rng.standard_normal((5, depth)).astype(np.float32)
    options = {} if limit is None else {"maxStorageBufferBindingSize": str(limit)}
    exact, found = _run(helper.make_node("MatMul", ["x", "w"], ["y"]), {"x": x}, {"w": weights}, options)
    return float(abs(found - exact).max() / abs(exact).max())


def _run(
    node: onnx.NodeProto,
    inputs: dict[str, NDArray[Any]],
    weights: dict[str, NDArray[Any]],
    options: dict[str, str] | None = None,
) -> list[NDArray[np.float32]]:
    """What the processor and the GPU give."""
    declare = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "g", [declare(name, TensorProto.FLOAT, array.shape) for name, array in inputs.items()],
        [declare("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    runtime, results = ort.library(), []
    for on_gpu in (False, True):
        settings = runtime.SessionOptions()
        if on_gpu:
            ort.add_plugin_device(settings, ort.plugin_devices()[0], options or {})
        results.append(runtime.InferenceSession(model, settings).run(None, inputs)[0])
    return results
