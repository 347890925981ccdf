"""The 8-bit forms of the vision graph: int8, with one activation scale for each token, and int8-block.

A tile's embeddings do not depend on the tiles next to it. For int8, ranges of channels are shared out between
activations and weights beforehand (see `ayaedge_quant.int8.Fold`), and the inner channels of an MLP are sorted by
their reach and form groups with scales of their own; statistics come from images drawn here.
int8-block has a scale for every 32 weights and activations and needs none of that: twice as slow where processors
multiply bytes in one instruction, and right where they do not (u8 times s8 saturates there).
The rounding itself is in `ayaedge_quant.int8`, the network in `ayaedge_export.vision.graph`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.checkpoint.config import VisionConfig
from ayaedge_export.checkpoint.spec import CONNECTOR, layer_prefix
from ayaedge_export.checkpoint.tensors import WeightSource
from ayaedge_export.vision.drawn_images import calibration_tiles
from ayaedge_export.vision.forward import FloatArray, LinearFunction, connector_input, encode
from ayaedge_export.vision.graph import (
    CONTRIB_DOMAIN,
    EXTERNAL_THRESHOLD,
    EmitLinear,
    EmitMlp,
    GraphWriter,
    add_bias,
    build_vision_graph,
    declare_tiles,
    weight_count,
)
from ayaedge_quant.int8 import (
    GELU_ZERO_POINT,
    SMALLEST_SCALE,
    SYMMETRIC_ZERO_POINT,
    ChannelSpread,
    Fold,
    balancing_fold,
    block_matmul,
    channel_order,
    column_energy,
    integer_matmul,
    quantize_blocks,
    quantize_groups,
    quantize_rows,
)

BLOCK_LINEAR = f"{CONNECTOR}.linear_2"
"""Its input is a product (SwiGLU) with few large channels in each token, different ones every time. One scale
for a token doubled the error of the whole graph at the 8B's width (random weights), and saved 4 % of time."""
BLOCK_SIZE = 32
BLOCK_ACCURACY_LEVEL = 4
"""MatMulNBits rounds activations to 8 bits in blocks of the same size."""
MLP_GROUPS = 4
"""Groups of an MLP's inner channels. On a trained tower they lower the error of the whole by a seventh; eight add
nothing to that."""
PATCHES_FOR_ONE_TILE = 400
"""So many patches of one tile tell enough: a second tile would cost a third of the time of the whole graph."""


def write_int8_vision_graph(
    path: Path,
    config: VisionConfig,
    weights: WeightSource,
    *,
    tiles: FloatArray | None = None,
    external_threshold: int = EXTERNAL_THRESHOLD,
) -> None:
    """Write the int8 graph to `path`, and weights that exceed the threshold (bytes) to `<path>.data`.

    Inputs and outputs are those of `write_vision_graph`. `tiles` (n, 3, S, S), normalised to -1..1, replaces
    the drawn images as calibration. Patch embedding, norms, attention and sums stay float32.
    """
    if tiles is None:
        large = config.patches_per_side**2 >= PATCHES_FOR_ONE_TILE
        tiles = calibration_tiles(config.image_size, count=1 if large else 2)
    plan = plan_int8(config, weights, tiles)
    folded = FoldedWeights(weights, plan)
    with GraphWriter(path, external=weight_count(config) > external_threshold) as graph:
        build_vision_graph(
            graph,
            config,
            folded,
            linear=int8_linear(folded),
            attention=fused_attention,
            mlp=int8_mlp(folded, plan.centres),
        )
        graph.save(*declare_tiles(config))


def write_block_vision_graph(
    path: Path,
    config: VisionConfig,
    weights: WeightSource,
    *,
    external_threshold: int = EXTERNAL_THRESHOLD,
) -> None:
    """Write the int8-block graph; files, inputs and outputs are those of `write_int8_vision_graph`."""
    with GraphWriter(path, external=weight_count(config) > external_threshold) as graph:
        build_vision_graph(graph, config, weights, linear=block_linear(weights), attention=fused_attention)
        graph.save(*declare_tiles(config))


def foldable_pairs(config: VisionConfig) -> dict[str, tuple[str, ...]]:
    """Which layer's channels can be rescaled, and the linears that then take it back.

    A norm ends in an affine step. A value passes attention as a weighted mean, which keeps scale and shift.
    """
    pairs: dict[str, tuple[str, ...]] = {}
    for prefix in map(layer_prefix, range(config.num_layers)):
        attention = f"{prefix}.self_attn"
        pairs[f"{prefix}.layer_norm1"] = tuple(f"{attention}.{part}_proj" for part in "qkv")
        pairs[f"{attention}.v_proj"] = (f"{attention}.out_proj",)
        pairs[f"{prefix}.layer_norm2"] = (f"{prefix}.mlp.fc1",)
    pairs[f"{CONNECTOR}.layernorm"] = (f"{CONNECTOR}.linear_1",)
    return pairs


@dataclass(frozen=True)
class Int8Plan:
    """What the calibration images decide; none of it changes the function of pixels."""

    folds: Mapping[str, tuple[tuple[str, ...], Fold]]
    """Name of a rescaled layer to the linears behind it and the fold between them."""
    orders: Mapping[str, NDArray[np.intp]]
    """Name of an MLP to the order of its inner channels, those that reach farthest first."""
    centres: Mapping[str, FloatArray]
    """Name of an MLP to the centres of its inner channels after GELU, in that order."""


def plan_int8(config: VisionConfig, weights: WeightSource, tiles: FloatArray) -> Int8Plan:
    """Run the tower over `tiles` (n, 3, S, S) and plan with what its linears are given.

    One weight is in memory at a time. The connector's matmuls are not needed and not computed.
    """
    first = {used[0] for used in foldable_pairs(config).values()}
    spreads: dict[str, ChannelSpread] = {}
    energies: dict[str, FloatArray] = {}

    def observe(name: str, x: FloatArray) -> FloatArray:
        weight = weights(f"{name}.weight")
        if name in first or name.endswith(".fc2"):
            spreads[name] = ChannelSpread.of(x)
        if not name.endswith(".fc2"):
            energies[name] = column_energy([weight])
        return np.asarray(x @ weight.T + weights(f"{name}.bias"))

    features = encode(config, weights, tiles, observe)
    last = f"{CONNECTOR}.linear_1"
    spreads[last] = ChannelSpread.of(connector_input(config, weights, features))
    energies[last] = column_energy([weights(f"{last}.weight")])
    return plan_from_statistics(config, spreads, energies)


def plan_from_statistics(
    config: VisionConfig, spreads: Mapping[str, ChannelSpread], energies: Mapping[str, FloatArray]
) -> Int8Plan:
    """A plan from the inputs of linears and the `column_energy` of their weights, by name.

    Linears that read the same input count alike, and the first of them tells of it. A fold whose linears are not
    among `spreads` is left out.
    """
    folds = {
        made: (used, balancing_fold(spreads[used[0]], np.mean([energies[name] for name in used], axis=0)))
        for made, used in foldable_pairs(config).items()
        if used[0] in spreads
    }
    inner = {
        f"{prefix}.mlp": spreads[f"{prefix}.mlp.fc2"]
        for prefix in map(layer_prefix, range(config.num_layers))
    }
    orders = {name: channel_order(seen) for name, seen in inner.items()}
    return Int8Plan(folds, orders, {name: seen.centre()[orders[name]] for name, seen in inner.items()})


class FoldedWeights:
    """A weight source that gives another one's tensors with all folds applied and MLPs in their planned order.

    A network with these weights is the same function of pixels.
    """

    def __init__(self, source: WeightSource, plan: Int8Plan) -> None:
        self._source = source
        self._made = {made: fold for made, (_, fold) in plan.folds.items()}
        self._used = {name: fold for used, fold in plan.folds.values() for name in used}
        self._outputs = {f"{mlp}.fc1": order for mlp, order in plan.orders.items()}
        self._inputs = {f"{mlp}.fc2": order for mlp, order in plan.orders.items()}

    def __call__(self, name: str) -> FloatArray:
        """The tensor `name` with what is folded into it."""
        layer, _, part = name.rpartition(".")
        tensor = self._folded(layer, part)
        if layer in self._outputs:
            return tensor[self._outputs[layer]]
        if layer in self._inputs and part == "weight":
            return np.take(tensor, self._inputs[layer], axis=1)
        return tensor

    def _folded(self, layer: str, part: str) -> FloatArray:
        tensor, used, made = self._source(f"{layer}.{part}"), self._used.get(layer), self._made.get(layer)
        if part == "weight":
            tensor = tensor if used is None else used.consumer_weight(tensor)
            return tensor if made is None else made.producer_weight(tensor)
        if used is not None:
            tensor = used.consumer_bias(tensor, self._source(f"{layer}.weight"))
        return tensor if made is None else made.producer_bias(tensor)


def int8_linear(weights: WeightSource) -> EmitLinear:
    """The integer form of a linear: quantize the tokens, multiply integers, scale back, add the bias."""
    emit_blocks = block_linear(weights)

    def emit(graph: GraphWriter, x: str, name: str) -> str:
        if name == BLOCK_LINEAR:
            return emit_blocks(graph, x, name)
        codes, scales = quantize_rows(weights(f"{name}.weight"))
        product = _integer_matmul(graph, x, name, codes, scales, SYMMETRIC_ZERO_POINT)
        return add_bias(graph, weights, product, name)

    return emit


def int8_mlp(
    weights: WeightSource, centres: Mapping[str, FloatArray], *, groups: int = MLP_GROUPS
) -> EmitMlp:
    """The integer form of an MLP: each group of inner channels has its part of both linears, and they are summed.

    Splitting the inner channels where they are made costs no copy. `centres` are those of `Int8Plan`.
    """

    def emit(graph: GraphWriter, x: str, name: str) -> str:
        first, bias = weights(f"{name}.fc1.weight"), weights(f"{name}.fc1.bias")
        second = quantize_groups(
            weights(f"{name}.fc2.weight"), weights(f"{name}.fc2.bias"), centres[name], groups
        )
        total = ""
        for group, (part, codes, scales) in enumerate(second.parts):
            fc1, fc2 = f"{name}.fc1.{group}", f"{name}.fc2.{group}"
            inner = _integer_matmul(graph, x, fc1, *quantize_rows(first[part]), SYMMETRIC_ZERO_POINT)
            inner = graph.node("Add", [inner, graph.constant(f"{fc1}.bias", bias[part])], fc1)
            inner = graph.node("Gelu", [inner], f"{name}.gelu.{group}", approximate="tanh")
            product = _integer_matmul(graph, inner, fc2, codes, scales, GELU_ZERO_POINT)
            total = graph.node("Add", [total, product], f"{fc2}.sum") if total else product
        return graph.node("Add", [total, graph.constant(f"{name}.fc2.bias", second.bias)], f"{name}.fc2")

    return emit


def block_linear(weights: WeightSource) -> EmitLinear:
    """The form with a scale for every block of weights and of activations."""

    def emit(graph: GraphWriter, x: str, name: str) -> str:
        return add_bias(graph, weights, _block_matmul(graph, weights, x, name), name)

    return emit


def int8_twin(weights: WeightSource, centres: Mapping[str, FloatArray]) -> LinearFunction:
    """The arithmetic of `int8_linear` and `int8_mlp` in numpy, for `ayaedge_export.vision.forward`."""
    apply_blocks = block_twin(weights)

    def apply(name: str, x: FloatArray) -> FloatArray:
        if name == BLOCK_LINEAR:
            return apply_blocks(name, x)
        weight, bias = weights(f"{name}.weight"), weights(f"{name}.bias")
        if name.endswith(".fc2"):
            grouped = quantize_groups(weight, bias, centres[name.removesuffix(".fc2")], MLP_GROUPS)
            return grouped(x, zero_point=GELU_ZERO_POINT)
        return integer_matmul(x, *quantize_rows(weight), zero_point=SYMMETRIC_ZERO_POINT) + bias

    return apply


def block_twin(weights: WeightSource) -> LinearFunction:
    """The arithmetic of `block_linear` in numpy."""

    def apply(name: str, x: FloatArray) -> FloatArray:
        product = block_matmul(x, *quantize_blocks(weights(f"{name}.weight"), BLOCK_SIZE))
        return np.asarray(product + weights(f"{name}.bias"))

    return apply


def fused_attention(graph: GraphWriter, config: VisionConfig, heads: Sequence[str], name: str) -> str:
    """ONNX Runtime's attention operator, which never stores the scores of a whole tile."""
    patches, hidden = config.patches_per_side**2, config.hidden_size
    # (rows, hidden) -> (tiles, patches, hidden)
    inputs = [graph.reshape(x, f"{x}.tiles", -1, patches, hidden) for x in heads]
    mixed = graph.node(
        "MultiHeadAttention", inputs, f"{name}.mixed", domain=CONTRIB_DOMAIN, num_heads=config.num_heads
    )
    return graph.reshape(mixed, f"{name}.mixed.rows", -1, hidden)


def _integer_matmul(
    graph: GraphWriter, x: str, name: str, codes: NDArray[np.int8], scales: FloatArray, zero_point: int
) -> str:
    """Nodes of `integer_matmul` with what `quantize_rows` gives, stored under `name`."""
    tokens, step = _quantize_tokens(graph, x, zero_point)
    inputs = [
        tokens,
        graph.constant(f"{name}.weight", codes),
        # the operator knows one activation scale for all tokens, so ours follow behind it
        graph.constant("one", np.array(1, np.float32)),
        graph.constant(f"{name}.scale", scales),
        graph.constant(f"zero_point.{zero_point}", np.array(zero_point, np.uint8)),
    ]
    product = graph.node("MatMulIntegerToFloat", inputs, f"{name}.product", domain=CONTRIB_DOMAIN)
    return graph.node("Mul", [product, step], f"{name}.scaled")


def _quantize_tokens(graph: GraphWriter, x: str, zero_point: int) -> tuple[str, str]:
    """Nodes of `quantize_tokens`: codes (rows, channels) and scales (rows, 1), emitted once for each `x`."""
    codes, step = f"{x}.codes", f"{x}.step"
    if graph.has_node(codes):
        return codes, step
    last = graph.constant("axis.last", np.array([-1], np.int64))
    bounds = []
    for op, steps in (("ReduceMax", 255 - zero_point), ("ReduceMin", -zero_point)):
        bound = graph.node(op, [x, last], f"{x}.{op}", keepdims=1)
        factor = graph.constant(f"inverse.{steps}", np.array(1 / steps, np.float32))
        bounds.append(graph.node("Mul", [bound, factor], f"{x}.{op}.step"))
    smallest = graph.constant("smallest_scale", np.array(SMALLEST_SCALE, np.float32))
    graph.node("Max", [*bounds, smallest], step)
    # QuantizeLinear takes one scale and one zero point for each row
    scales = graph.reshape(step, f"{x}.steps", -1)
    rows = graph.node("Shape", [scales], f"{x}.rows")
    zero = graph.constant(f"zero_points.{zero_point}", np.array([zero_point], np.uint8))
    zeros = graph.node("Expand", [zero, rows], f"{x}.zeros")
    graph.node("QuantizeLinear", [x, scales, zeros], codes, axis=0)
    return codes, step


def _block_matmul(graph: GraphWriter, weights: WeightSource, x: str, name: str) -> str:
    weight = weights(f"{name}.weight")
    outputs, inputs = weight.shape
    codes, scales = quantize_blocks(weight, BLOCK_SIZE)
    return graph.node(
        "MatMulNBits",
        [x, graph.constant(f"{name}.weight", codes), graph.constant(f"{name}.scale", scales)],
        f"{name}.product",
        domain=CONTRIB_DOMAIN,
        K=inputs,
        N=outputs,
        bits=8,
        block_size=BLOCK_SIZE,
        accuracy_level=BLOCK_ACCURACY_LEVEL,
    )
