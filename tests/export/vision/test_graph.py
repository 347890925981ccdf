"""The vision graphs against transformers, against their numpy twin, and against each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from ayaedge.errors import CheckpointError
from ayaedge.hardware.machine import processor
from ayaedge.images.load import load_image
from ayaedge.images.tiling import normalize, split_tiles
from ayaedge.manifest import Tiling
from ayaedge.vision.session import EXACT_PRODUCTS
from ayaedge_export.checkpoint.config import VisionConfig, parse_config
from ayaedge_export.checkpoint.spec import UNUSED_TENSORS, vision_tensors
from ayaedge_export.checkpoint.tensors import TensorIndex, WeightSource
from ayaedge_export.vision.drawn_images import calibration_tiles
from ayaedge_export.vision.forward import LinearFunction, gelu_tanh, plain_linear, vision_forward
from ayaedge_export.vision.graph import (
    OUTPUT_NAME,
    PAGE,
    EmitLinear,
    FloatPrecision,
    GraphWriter,
    convert,
    write_vision_graph,
)
from ayaedge_export.vision.int8 import (
    BLOCK_LINEAR,
    FoldedWeights,
    block_linear,
    block_twin,
    int8_linear,
    int8_mlp,
    int8_twin,
    plan_int8,
    write_block_vision_graph,
    write_int8_vision_graph,
)

IMAGES = Path(__file__).parents[3] / "examples" / "pictures"
FLOAT_ROUNDING = 1e-5
"""Largest difference over largest activation: the sums are the same, in another order."""
HALF_ROUNDING = 3e-3
INT8_ERROR, INT8_COSINE = 0.015, 0.9998
"""Of the trained tower: mean over tokens of ||y - ref|| / ||ref||, and mean cosine."""
TWIN_ERROR = 0.01
"""Graph and twin sum floats in another order: now and then a rounding turns over, and then more behind it."""

ODD_SHAPE = VisionConfig(
    image_size=96, patch_size=16, hidden_size=72, intermediate_size=100, num_layers=3, num_heads=3,
    layer_norm_eps=1e-5, downsample_factor=2, adapter_layer_norm_eps=1e-6, adapter_size=90, output_size=50,
)  # fmt: skip
SHAPES = {
    "odd widths": ODD_SHAPE,
    "downsample 4": replace(ODD_SHAPE, image_size=112, patch_size=14, downsample_factor=4),
    "pixels left over": replace(ODD_SHAPE, image_size=61, patch_size=10, downsample_factor=3, num_layers=1),
}

Write = Callable[..., None]
WRITERS: dict[str, Write] = {
    "fp32": write_vision_graph,
    "fp16": lambda *args, **kwargs: write_vision_graph(*args, precision="fp16", **kwargs),
    "int8": write_int8_vision_graph,
    "int8-block": write_block_vision_graph,
}


@dataclass(frozen=True)
class Tower:
    """A tower to be exported, and tiles for it."""

    config: VisionConfig
    weights: WeightSource
    tiles: NDArray[np.float32]


def random_tower(config: VisionConfig) -> Tower:
    rng = np.random.default_rng(3)
    arrays = {
        name: rng.normal(0, np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3, shape).astype(np.float32)
        for name, shape in vision_tensors(config).items()
    }
    for name in arrays:
        if "norm" in name and name.endswith("weight"):
            arrays[name] += 1
    tiles = rng.uniform(-1, 1, (3, 3, config.image_size, config.image_size)).astype(np.float32)
    return Tower(config, arrays.__getitem__, tiles)


@pytest.fixture(scope="session")
def trained(tiny: Path) -> Tower:
    """The trained checkpoint's tower, with the tiles of real images."""
    if not (tiny / "model.safetensors").exists():
        pytest.skip(f"no trained checkpoint in {tiny}")
    config = parse_config(json.loads((tiny / "config.json").read_text("utf-8")), []).vision
    tiling = Tiling(tile_size=config.image_size, max_tiles=6)
    images = [load_image(path) for path in sorted(IMAGES.glob("*.png"))]
    tiles = np.concatenate([normalize(split_tiles(image, tiling), tiling) for image in images])
    return Tower(config, TensorIndex(tiny).read, tiles)


@pytest.fixture(scope="session", params=[*SHAPES, "trained"])
def tower(request: pytest.FixtureRequest) -> Tower:
    if request.param == "trained":
        found: Tower = request.getfixturevalue("trained")
        return found
    return random_tower(SHAPES[request.param])


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """As the runtime does: products of bytes are exact on every processor."""
    options = onnxruntime.SessionOptions()
    if processor().saturates:
        for name, value in EXACT_PRODUCTS.items():
            options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path: Path, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(open_graph(path).run([OUTPUT_NAME], {"pixel_values": tiles})[0])


def transformers_embeddings(tower: Tower) -> NDArray[np.float32]:
    """What `AyaVisionModel.get_image_features` says, (n, T, output_size)."""
    import torch
    from transformers import AyaVisionConfig, AyaVisionModel, Cohere2Config, SiglipVisionConfig

    config = tower.config
    vision = SiglipVisionConfig(
        image_size=config.image_size, patch_size=config.patch_size, hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, layer_norm_eps=config.layer_norm_eps, vision_use_head=False,
    )  # fmt: skip
    text = Cohere2Config(
        hidden_size=config.output_size, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        intermediate_size=8, vocab_size=8, pad_token_id=0,
    )  # fmt: skip
    model = AyaVisionModel(
        AyaVisionConfig(
            vision_config=vision, text_config=text, downsample_factor=config.downsample_factor,
            adapter_layer_norm_eps=config.adapter_layer_norm_eps,
            alignment_intermediate_size=config.adapter_size,
        )
    ).eval()  # fmt: skip
    state = {name: torch.tensor(tower.weights(name)) for name in vision_tensors(config)}
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("language_model.") for key in missing.missing_keys)
    with torch.no_grad():
        features = model.get_image_features(
            torch.from_numpy(tower.tiles), vision_feature_layer=-1, vision_feature_select_strategy="full"
        )
    return np.asarray(torch.stack(list(features)).flatten(1, -2))


def largest_difference(y: NDArray[Any], reference: NDArray[Any]) -> float:
    """Over the largest activation."""
    return float(np.abs(y - reference).max() / np.abs(reference).max())


def error_and_cosine(y: NDArray[Any], reference: NDArray[Any]) -> tuple[float, float]:
    """Mean over tokens of the relative error and of the cosine."""
    y, reference = (a.reshape(-1, a.shape[-1]).astype(np.float64) for a in (y, reference))
    norms = np.linalg.norm(y, axis=1), np.linalg.norm(reference, axis=1)
    error = np.linalg.norm(y - reference, axis=1) / norms[1]
    return float(error.mean()), float(((y * reference).sum(1) / norms[0] / norms[1]).mean())


def test_the_fp32_graph_equals_transformers(tower: Tower, tmp_path: Path) -> None:
    write_vision_graph(tmp_path / "v.onnx", tower.config, tower.weights)
    embeddings = run(tmp_path / "v.onnx", tower.tiles)
    assert embeddings.shape == (len(tower.tiles), tower.config.tokens_per_tile, tower.config.output_size)
    assert largest_difference(embeddings, transformers_embeddings(tower)) < FLOAT_ROUNDING


def test_the_numpy_twin_equals_transformers(tower: Tower) -> None:
    embeddings = vision_forward(tower.config, tower.weights, tower.tiles)
    assert largest_difference(embeddings, transformers_embeddings(tower)) < FLOAT_ROUNDING


def test_the_fp16_graph_is_close_and_speaks_float32(tower: Tower, tmp_path: Path) -> None:
    write_vision_graph(tmp_path / "v.onnx", tower.config, tower.weights, precision="fp16")
    embeddings = run(tmp_path / "v.onnx", tower.tiles)
    assert embeddings.dtype == np.float32
    assert error_and_cosine(embeddings, transformers_embeddings(tower))[0] < HALF_ROUNDING


@pytest.mark.parametrize("form", ["int8", "int8-block"])
def test_8_bits_keep_a_trained_tower_within_its_bars(form: str, trained: Tower, tmp_path: Path) -> None:
    WRITERS[form](tmp_path / "v.onnx", trained.config, trained.weights)
    reference = vision_forward(trained.config, trained.weights, trained.tiles)
    error, cosine = error_and_cosine(run(tmp_path / "v.onnx", trained.tiles), reference)
    assert error < INT8_ERROR
    assert cosine > INT8_COSINE


def test_the_int8_graph_equals_its_numpy_twin(tower: Tower, tmp_path: Path) -> None:
    write_int8_vision_graph(tmp_path / "v.onnx", tower.config, tower.weights)
    plan = plan_int8(tower.config, tower.weights, calibration_tiles(tower.config.image_size))
    folded = FoldedWeights(tower.weights, plan)
    twin = vision_forward(tower.config, folded, tower.tiles, int8_twin(folded, plan.centres))
    assert error_and_cosine(run(tmp_path / "v.onnx", tower.tiles), twin)[0] < TWIN_ERROR


def int8_linear_twin(weights: WeightSource) -> LinearFunction:
    return int8_twin(weights, {})


@pytest.mark.parametrize("name", ["self_attn.q_proj", BLOCK_LINEAR])
@pytest.mark.parametrize(("linear", "twin"), [(int8_linear, int8_linear_twin), (block_linear, block_twin)])
def test_one_8_bit_linear_equals_its_numpy_twin(
    linear: Callable[[WeightSource], EmitLinear],
    twin: Callable[[WeightSource], LinearFunction],
    name: str,
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(6)
    arrays = {
        f"{name}.weight": rng.standard_normal((30, 50)).astype(np.float32),
        f"{name}.bias": rng.standard_normal(30).astype(np.float32),
    }
    x = rng.standard_normal((20, 50)).astype(np.float32)
    with GraphWriter(tmp_path / "linear.onnx") as graph:
        linear(arrays.__getitem__)(graph, "x", name)
        graph.save(
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("rows", 50)),
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ("rows", 30)),
        )
    (y,) = open_graph(tmp_path / "linear.onnx").run([name], {"x": x})
    assert largest_difference(y, twin(arrays.__getitem__)(name, x)) < FLOAT_ROUNDING


@pytest.mark.parametrize("inner", [10, 50, 200])
def test_one_int8_mlp_equals_its_numpy_twin_and_is_near_the_float_one(inner: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (
            ("mlp.fc1.weight", (inner, 30)), ("mlp.fc1.bias", (inner,)),
            ("mlp.fc2.weight", (24, inner)), ("mlp.fc2.bias", (24,)),
        )
    }  # fmt: skip
    x, centres = rng.standard_normal((20, 30)).astype(np.float32), {"mlp": np.ones(inner, np.float32)}
    with GraphWriter(tmp_path / "mlp.onnx") as graph:
        result = int8_mlp(arrays.__getitem__, centres)(graph, "x", "mlp")
        graph.save(
            onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ("rows", 30)),
            onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, ("rows", 24)),
        )
    (y,) = open_graph(tmp_path / "mlp.onnx").run([result], {"x": x})
    twin, exact = int8_twin(arrays.__getitem__, centres), plain_linear(arrays.__getitem__)
    assert error_and_cosine(y, twin("mlp.fc2", gelu_tanh(twin("mlp.fc1", x))))[0] < TWIN_ERROR / 10
    assert error_and_cosine(y, exact("mlp.fc2", gelu_tanh(exact("mlp.fc1", x))))[0] < INT8_ERROR


@pytest.mark.parametrize("form", ["int8", "int8-block"])
def test_8_bit_embeddings_do_not_depend_on_the_other_tiles(form: str, trained: Tower, tmp_path: Path) -> None:
    WRITERS[form](tmp_path / "v.onnx", trained.config, trained.weights)
    together = run(tmp_path / "v.onnx", trained.tiles)
    for start, stop in ((0, 1), (1, 2), (2, 5), (len(together) - 1, len(together))):
        assert np.array_equal(run(tmp_path / "v.onnx", trained.tiles[start:stop]), together[start:stop])


def test_folding_and_sorting_do_not_change_the_function(tower: Tower) -> None:
    plan = plan_int8(tower.config, tower.weights, calibration_tiles(tower.config.image_size))
    folded = vision_forward(tower.config, FoldedWeights(tower.weights, plan), tower.tiles)
    assert (
        largest_difference(folded, vision_forward(tower.config, tower.weights, tower.tiles)) < FLOAT_ROUNDING
    )


@pytest.mark.parametrize("form", WRITERS)
def test_weights_beside_the_graph_give_the_same_embeddings(form: str, tmp_path: Path) -> None:
    tower = random_tower(ODD_SHAPE)
    inside, beside = tmp_path / "inside.onnx", tmp_path / "beside.onnx"
    WRITERS[form](inside, tower.config, tower.weights)
    WRITERS[form](beside, tower.config, tower.weights, external_threshold=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["beside.onnx", "beside.onnx.data", "inside.onnx"]
    assert beside.stat().st_size < inside.stat().st_size / 2
    assert np.array_equal(run(beside, tower.tiles), run(inside, tower.tiles))


def test_tensors_beside_the_graph_start_on_pages(tmp_path: Path) -> None:
    tower = random_tower(ODD_SHAPE)
    write_vision_graph(tmp_path / "v.onnx", tower.config, tower.weights, external_threshold=0)
    model = onnx.load(tmp_path / "v.onnx", load_external_data=False)
    places = [{e.key: e.value for e in tensor.external_data} for tensor in model.graph.initializer]
    offsets = [int(place["offset"]) for place in places if place]
    assert len(offsets) > 10
    assert all(offset % PAGE == 0 for offset in offsets)
    assert {place["location"] for place in places if place} == {"v.onnx.data"}


@pytest.mark.parametrize("form", WRITERS)
def test_the_same_checkpoint_gives_the_same_bytes(form: str, tmp_path: Path) -> None:
    tower = random_tower(ODD_SHAPE)
    for run_name in ("first", "second"):
        (tmp_path / run_name).mkdir()
        WRITERS[form](tmp_path / run_name / "v.onnx", tower.config, tower.weights, external_threshold=0)
    for name in ("v.onnx", "v.onnx.data"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("precision", get_args(FloatPrecision))
def test_float_graphs_hold_standard_operators_of_low_rank_only(
    precision: FloatPrecision, tmp_path: Path
) -> None:
    tower = random_tower(ODD_SHAPE)
    write_vision_graph(tmp_path / "v.onnx", tower.config, tower.weights, precision=precision)
    onnx.checker.check_model(tmp_path / "v.onnx", full_check=True)
    model = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "v.onnx"), strict_mode=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [opset.domain for opset in model.opset_import] == [""]
    assert max(len(value.type.tensor_type.shape.dim) for value in model.graph.value_info) <= 5


def test_a_weight_too_large_for_fp16_is_named(tmp_path: Path) -> None:
    tower = random_tower(ODD_SHAPE)
    name = "multi_modal_projector.linear_1.bias"
    weights = lambda asked: tower.weights(asked) * (1e6 if asked == name else 1)  # noqa: E731
    with pytest.raises(CheckpointError, match=f"{name} does not fit float16"):
        write_vision_graph(tmp_path / "v.onnx", tower.config, weights, precision="fp16")


def test_all_sizes_that_do_not_divide_are_reported_at_once(tmp_path: Path) -> None:
    config = replace(ODD_SHAPE, downsample_factor=4, num_heads=5, adapter_size=91)
    with pytest.raises(CheckpointError, match=r"(?s)6 / 4.*72 / 5.*91 / 2"):
        write_vision_graph(tmp_path / "v.onnx", config, random_tower(ODD_SHAPE).weights)


def test_every_tensor_but_the_unused_ones_is_read(tmp_path: Path) -> None:
    tower, asked = random_tower(ODD_SHAPE), set()

    def weights(name: str) -> NDArray[np.float32]:
        asked.add(name)
        return tower.weights(name)

    write_vision_graph(tmp_path / "v.onnx", tower.config, weights)
    assert asked == set(vision_tensors(tower.config)) - set(UNUSED_TENSORS)


def test_calibration_tiles_are_the_same_every_time_and_in_range() -> None:
    for size, count in product((56, 61, 364), (1, 2)):
        tiles = calibration_tiles(size, count=count)
        assert tiles.shape == (count, 3, size, size)
        assert np.abs(tiles).max() <= 1
        assert np.array_equal(tiles, calibration_tiles(size, count=count))


def test_one_calibration_tile_keeps_a_trained_tower_within_the_bars(trained: Tower, tmp_path: Path) -> None:
    tiles = calibration_tiles(trained.config.image_size, count=1)
    write_int8_vision_graph(tmp_path / "v.onnx", trained.config, trained.weights, tiles=tiles)
    reference = vision_forward(trained.config, trained.weights, trained.tiles)
    error, cosine = error_and_cosine(run(tmp_path / "v.onnx", trained.tiles), reference)
    assert error < INT8_ERROR
    assert cosine > INT8_COSINE


@pytest.mark.parametrize("shape", [(3,), (300, 200), (5, 7, 131)])
def test_conversion_in_slabs_is_that_of_numpy(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    for turned in (array, array.T):
        converted = convert(turned, np.float16)
        assert converted.flags.c_contiguous
        assert np.array_equal(converted, turned.astype(np.float16))
