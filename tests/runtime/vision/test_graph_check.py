"""A vision graph that the exporter cannot have written is refused before ONNX Runtime sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ayaedge import AyaVision, BundleError
from ayaedge.bundle import Bundle, demo_bundle, read_bundle
from ayaedge.vision.encoder import VisionEncoder
from ayaedge.vision.graph_check import check_graph
from ayaedge.vision.graph_shapes import RULES
from ayaedge_export.checkpoint.config import parse_config
from ayaedge_export.checkpoint.tensors import TensorIndex
from ayaedge_export.vision.graph import write_vision_graph
from ayaedge_export.vision.int8 import write_block_vision_graph, write_int8_vision_graph
from slow_graph import with_graph

CPU_SECONDS = 10.0


@pytest.fixture(scope="module")
def demo() -> Bundle:
    return read_bundle(demo_bundle())


def written(tiny: Path, directory: Path) -> list[Path]:
    """A graph of each form that an export has."""
    from ayaedge_export.vision.trace import trace_vision_graph  # PyTorch, for seconds

    config = parse_config(json.loads((tiny / "config.json").read_text("utf-8")), []).vision
    weights = TensorIndex(tiny).read
    write_vision_graph(directory / "fp32.onnx", config, weights)
    write_vision_graph(directory / "beside.onnx", config, weights, external_threshold=0)
    write_vision_graph(directory / "fp16.onnx", config, weights, precision="fp16")
    write_int8_vision_graph(directory / "int8.onnx", config, weights)
    write_block_vision_graph(directory / "int8-block.onnx", config, weights)
    trace_vision_graph(directory / "traced.onnx", config, weights)
    return sorted(directory.glob("*.onnx"))


def test_the_operators_that_are_allowed_are_those_that_exports_write(
    tiny: Path, demo: Bundle, tmp_path: Path
) -> None:
    seen: dict[str, set[str]] = {}
    for path in written(tiny, tmp_path):
        check_graph(path, demo.manifest)
        for node in onnx.load(path, load_external_data=False).graph.node:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            seen.setdefault(name, set()).update(attribute.name for attribute in node.attribute)
    assert {name: rule.attributes for name, rule in RULES.items()} == seen
    check_graph(demo.vision_path, demo.manifest)


def loop_model(demo: Bundle) -> onnx.ModelProto:
    """2**62 rounds of nothing, and then the embeddings."""
    model = onnx.load(demo.vision_path)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])], "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )  # fmt: skip
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "rounds"))
    model.graph.node.append(
        helper.make_node("Loop", ["rounds", "", "before"], ["image_embeddings"], body=body)
    )
    return model


def test_a_loop_without_end_is_refused_when_a_bundle_is_loaded(demo: Bundle, tmp_path: Path) -> None:
    directory = with_graph(tmp_path / "b", loop_model(demo).SerializeToString())
    started = time.thread_time()
    with pytest.raises(BundleError, match=r"uses the operator 'Loop'[\s\S]*export again"):
        AyaVision.load(directory)
    assert time.thread_time() - started < CPU_SECONDS


Change = Callable[[onnx.ModelProto], object]


def grown(operator: str, *extra: np.ndarray, **attributes: object) -> Change:
    """A node in front of the others that makes much of little."""

    def change(model: onnx.ModelProto) -> None:
        names = [f"extra.{place}" for place in range(len(extra))]
        model.graph.initializer.extend(map(numpy_helper.from_array, extra, names))
        model.graph.node.insert(0, helper.make_node(operator, names, ["grown"], **attributes))

    return change


def doubling(model: onnx.ModelProto) -> None:
    """Concat of a constant with itself, 60 times."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 8), np.float32), "double.0"))
    for step in range(60):
        node = helper.make_node("Concat", [f"double.{step}"] * 2, [f"double.{step + 1}"], axis=0)
        model.graph.node.insert(step, node)


def squaring(model: onnx.ModelProto) -> None:
    """Products of constants, which ONNX Runtime computes while it loads."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((500, 500), np.float32), "power.0"))
    for step in range(40):
        model.graph.node.insert(
            step, helper.make_node("MatMul", [f"power.{step}"] * 2, [f"power.{step + 1}"])
        )


def moved(**entries: str) -> Change:
    """The first weight elsewhere."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
        stated = {
            "location": "vision.onnx.data",
            "offset": "0",
            "length": str(len(tensor.raw_data)),
        } | entries
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in stated.items():
            tensor.external_data.add(key=key, value=value)

    return change


def declared(what: str, sizes: list[object]) -> Change:
    def change(model: onnx.ModelProto) -> None:
        listed = getattr(model.graph, what)
        name = listed[0].name
        del listed[:]
        listed.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))

    return change


def wide(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**40]


ONE, ROW, COLUMN = (
    np.ones((1, 1), np.float32),
    np.ones((1, 99999), np.float32),
    np.ones((99999, 1), np.float32),
)
BIG = np.array([2**20, 2**20])
FAULTS: dict[str, tuple[Change, str]] = {
    "a giant Expand": (grown("Expand", ONE, BIG), r"Expand for 'grown' gives 1,099,511,627,776 num"),
    "an Expand to what overflows": (grown("Expand", ONE, np.array([2**62, 2**62])), "Expand for 'grown' gives"),
    "ConstantOfShape": (grown("ConstantOfShape", BIG), "uses the operator 'ConstantOfShape'"),
    "Range": (grown("Range", np.array(0), np.array(2**62), np.array(1)), "uses the operator 'Range'"),
    "Tile": (grown("Tile", ONE, BIG), "uses the operator 'Tile'"),
    "an outer product": (grown("MatMul", COLUMN, ROW), "'grown' gives"),
    "an outer sum": (grown("Add", COLUMN, ROW), "'grown' gives"),
    "doubling": (doubling, r"Concat for .* numbers that depend on no image"),
    "products of constants": (squaring, r"MatMul for .* numbers that depend on no image"),
    "an attribute of no export": (
        lambda model: model.graph.node[0].attribute.append(helper.make_attribute("pads", [9**9] * 4)),
        "attribute 'pads'"),
    "an operator of another domain": (
        lambda model: model.graph.node[0].MergeFrom(onnx.NodeProto(domain="ai.evil")), r"operator 'ai\.evil\.Conv'"),
    "a newer operator set": (
        lambda model: setattr(model.opset_import[0], "version", 27), "version 27 of the operators 'ai.onnx'"),
    "functions": (lambda model: model.functions.add(name="f"), "the model holds field 25"),
    "sparse weights": (lambda model: model.graph.sparse_initializer.add(), "the graph holds field 15"),
    "sizes that lie": (wide, "must hold .* bytes, it holds"),
    "a second input": (lambda model: model.graph.input.append(model.graph.input[0]), "its input must be one"),
    "another tile size": (declared("input", ["tiles", 3, 999, 999]), "its input must be one"),
    "another output": (declared("output", ["tiles", 1, 1]), "its output must be one"),
    "a weight in another file": (moved(location="../../etc/passwd"), r"must lie in vision\.onnx\.data"),
    "a weight behind the end": (moved(), r"must lie in vision\.onnx\.data"),
    "a length that lies": (moved(length="1"), r"must lie in vision\.onnx\.data"),
    "a cycle": (
        lambda model: model.graph.node[0].input.__setitem__(0, model.graph.node[-1].output[0]), "has the inputs"),
    "one name for two": (
        lambda model: model.graph.node[1].output.__setitem__(0, model.graph.node[0].output[0]), "has the outputs"),
    "too many operators": (
        lambda model: model.graph.node.extend([helper.make_node("Tanh", ["a"], ["a"])] * 33_000),
        "operators, more than"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_what_could_take_all_time_or_memory_is_refused(case: str, demo: Bundle, tmp_path: Path) -> None:
    change, message = FAULTS[case]
    model = onnx.load(demo.vision_path)
    change(model)
    path = tmp_path / "vision.onnx"
    path.write_bytes(model.SerializeToString())
    started = time.thread_time()
    with pytest.raises(BundleError, match=message):
        VisionEncoder(path, demo.manifest)
    assert time.thread_time() - started < CPU_SECONDS


def test_all_faults_of_a_graph_are_told_at_once(demo: Bundle, tmp_path: Path) -> None:
    model = loop_model(demo)
    for case in ("Tile", "functions", "another output"):
        FAULTS[case][0](model)
    (tmp_path / "vision.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError) as caught:
        check_graph(tmp_path / "vision.onnx", demo.manifest)
    assert all(word in str(caught.value) for word in ("'Loop'", "'Tile'", "field 25", "its output", "faults"))


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_graph_is_accepted_or_refused_cleanly(seed: int, demo: Bundle, tmp_path: Path) -> None:
    rng, data = np.random.default_rng(seed), bytearray(demo.vision_path.read_bytes())
    path = tmp_path / "vision.onnx"
    model = onnx.load(demo.vision_path)
    for tensor in model.graph.initializer:  # so that what is damaged is seldom a weight
        if len(tensor.raw_data) > 64:
            tensor.ClearField("raw_data")
            tensor.dims[:] = [0]
    data = bytearray(model.SerializeToString())
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged[: int(rng.integers(1, len(data)))] if rng.random() < 0.2 else damaged)
        with pytest.raises(BundleError, match="the vision graph"):
            check_graph(path, demo.manifest)
    for content in (b"", b"\x00", b"\xff" * 100, b"\x3a\xff\xff\xff\xff\x7f"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="the vision graph"):
            check_graph(path, demo.manifest)
