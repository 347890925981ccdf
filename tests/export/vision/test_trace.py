"""The traced vision graph, and that the direct one says the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
from numpy.typing import NDArray

from ayaedge.errors import CheckpointError, ExportError
from ayaedge_export.checkpoint.config import VisionConfig, parse_config
from ayaedge_export.checkpoint.spec import UNUSED_TENSORS, vision_tensors
from ayaedge_export.checkpoint.tensors import TensorIndex, WeightSource
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.vision.graph import write_vision_graph

FLOAT_ROUNDING = 1e-5
"""Largest difference over largest activation: the sums are the same, in another order."""

ODD_SHAPE = VisionConfig(
    image_size=61, patch_size=10, hidden_size=72, intermediate_size=100, num_layers=2, num_heads=3,
    layer_norm_eps=1e-5, downsample_factor=3, adapter_layer_norm_eps=1e-6, adapter_size=90, output_size=50,
)  # fmt: skip


def trace_vision_graph(path: Path, config: VisionConfig, weights: WeightSource) -> None:
    from ayaedge_export.vision import trace  # PyTorch: seconds, in each process that only collects

    trace.trace_vision_graph(path, config, weights)


def random_weights(config: VisionConfig) -> WeightSource:
    rng = np.random.default_rng(4)
    shapes = vision_tensors(config)
    return {name: rng.normal(0, 0.15, shape).astype(np.float32) for name, shape in shapes.items()}.__getitem__


def trained_tower(directory: Path) -> tuple[VisionConfig, WeightSource]:
    if not (directory / "model.safetensors").exists():
        pytest.skip(f"no trained checkpoint in {directory}")
    config = parse_config(json.loads((directory / "config.json").read_text("utf-8")), []).vision
    return config, TensorIndex(directory).read


@pytest.mark.parametrize("shape", ["odd", "trained"])
def test_the_direct_and_the_traced_graph_agree(shape: str, tiny: Path, tmp_path: Path) -> None:
    config, weights = (ODD_SHAPE, random_weights(ODD_SHAPE)) if shape == "odd" else trained_tower(tiny)
    write_vision_graph(tmp_path / "direct.onnx", config, weights)
    trace_vision_graph(tmp_path / "traced.onnx", config, weights)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["direct.onnx", "traced.onnx"]
    direct, traced = (onnxruntime.InferenceSession(tmp_path / f"{way}.onnx") for way in ("direct", "traced"))
    assert signature(direct) == signature(traced)
    for count in (1, 3):
        tiles = np.random.default_rng(count).uniform(-1, 1, (count, 3, config.image_size, config.image_size))
        ours, theirs = (embed(session, tiles.astype(np.float32)) for session in (direct, traced))
        assert np.abs(ours - theirs).max() < FLOAT_ROUNDING * np.abs(theirs).max()


def test_too_little_memory_for_tracing_is_said_before_any_work(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = psutil.virtual_memory()._replace(available=300_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(ExportError, match=r"takes about 0\.5 GB of memory and 0\.3 GB are available"):
        export_checkpoint(tiny, tmp_path / "b", vision="fp32", trace=True)
    assert list(tmp_path.iterdir()) == []


def test_traced_weights_beside_the_graph_bear_our_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = random_weights(ODD_SHAPE)
    trace_vision_graph(tmp_path / "inside.onnx", ODD_SHAPE, weights)
    monkeypatch.setenv("FORCE_ONNX_EXTERNAL_DATA", "1")
    trace_vision_graph(tmp_path / "beside.onnx", ODD_SHAPE, weights)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beside.onnx", "beside.onnx.data", "inside.onnx"]
    tiles = np.random.default_rng(0).uniform(-1, 1, (2, 3, 61, 61)).astype(np.float32)
    inside, beside = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("inside", "beside")
    )
    assert np.array_equal(embed(inside, tiles), embed(beside, tiles))


def signature(session: onnxruntime.InferenceSession) -> list[tuple[str, str, list[str | int]]]:
    return [(a.name, a.type, a.shape) for a in (*session.get_inputs(), *session.get_outputs())]


def embed(session: onnxruntime.InferenceSession, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(session.run(["image_embeddings"], {"pixel_values": tiles})[0])


def test_the_traced_module_holds_tower_and_connector_only() -> None:
    from ayaedge_export.vision.trace import VisionModule

    parameters = {name: tuple(p.shape) for name, p in VisionModule(ODD_SHAPE).named_parameters()}
    assert parameters == vision_tensors(ODD_SHAPE)


def test_tensors_behind_the_features_are_not_asked_for(tmp_path: Path) -> None:
    asked: list[str] = []
    source = random_weights(ODD_SHAPE)

    def weights(name: str) -> NDArray[np.float32]:
        asked.append(name)
        return source(name)

    trace_vision_graph(tmp_path / "v.onnx", ODD_SHAPE, weights)
    assert sorted(asked) == sorted(set(vision_tensors(ODD_SHAPE)) - set(UNUSED_TENSORS))


def test_sizes_that_do_not_divide_are_reported_before_any_work(tmp_path: Path) -> None:
    config = replace(ODD_SHAPE, downsample_factor=4)
    with pytest.raises(CheckpointError, match="6 / 4"):
        trace_vision_graph(tmp_path / "v.onnx", config, random_weights(ODD_SHAPE))


@pytest.mark.parametrize("missing", ["torch", "transformers", "optimum"])
def test_without_the_extra_the_error_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import ayaedge_export.vision.trace"
    path = f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
    result = subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=False)
    assert "MissingExtraError: tracing the vision tower needs an extra" in result.stderr
    assert 'pip install "ayaedge[trace]"' in result.stderr
