"""A vision graph whose tile takes about a second, of the operators that the exporter writes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from ayaedge.bundle import MANIFEST, hash_file, read_manifest
from ayaedge.manifest import VISION, FileInfo, Manifest
from grammar_machine import DEMO

ROWS, WIDTH = 256, 1024
STEPS = 120


def write_slow_graph(path: Path, manifest: Manifest, steps: int = STEPS) -> None:
    """One matmul of 268 million products behind the other; embeddings are the largest value of the tile."""
    size, tokens = manifest.tiling.tile_size, manifest.image_prompt.tokens_per_tile
    hidden = manifest.decoder.hidden_size
    constants = {
        "axes": np.array([1, 2, 3]), "flat": np.array([-1, 1]), "all": np.array([-1, ROWS * WIDTH]),
        "rows": np.array([-1, WIDTH]), "shape": np.array([-1, tokens, hidden]), "last": np.array([-1]),
        "spread": np.ones((1, ROWS * WIDTH), np.float32), "weight": np.eye(WIDTH, dtype=np.float32),
        "out": np.ones((1, tokens * hidden), np.float32), "axis": np.array([1]),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("ReduceMax", ["pixel_values", "axes"], ["top"], keepdims=0),
        node("Reshape", ["top", "flat"], ["column"]),
        node("MatMul", ["column", "spread"], ["wide"]),
        node("Reshape", ["wide", "rows"], ["step.0"]),
        *(node("MatMul", [f"step.{i}", "weight"], [f"step.{i + 1}"]) for i in range(steps)),
        node("Reshape", [f"step.{steps}", "all"], ["again"]),
        node("ReduceMax", ["again", "axis"], ["highest"], keepdims=1),
        node("MatMul", ["highest", "out"], ["flat_embeddings"]),
        node("Reshape", ["flat_embeddings", "shape"], ["image_embeddings"]),
    ]
    graph = helper.make_graph(
        nodes, "slow",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["tiles", 3, size, size])],
        [helper.make_tensor_value_info("image_embeddings", TensorProto.FLOAT, ["tiles", tokens, hidden])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def with_graph(directory: Path, graph: bytes | None = None, *, steps: int = STEPS) -> Path:
    """The demonstration's bundle with another vision graph, the slow one by default."""
    shutil.copytree(DEMO, directory)
    manifest, path = read_manifest(directory), directory / VISION
    if graph is None:
        write_slow_graph(path, manifest, steps)
    else:
        path.write_bytes(graph)
    files = manifest.files | {VISION: FileInfo(path.stat().st_size, hash_file(path))}
    formats = dataclasses.replace(manifest.formats, vision="fp32")
    (directory / MANIFEST).write_text(
        dataclasses.replace(manifest, files=files, formats=formats).to_json(), "utf-8"
    )
    return directory
