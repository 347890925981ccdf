"""Builds the vision tower and connector as an ONNX graph, straight from weights and without torch.

One description of the network serves every number format: `build_vision_graph` takes the form of a linear
layer, of attention and of an MLP as functions. Here are the float forms, in standard operators only; the int8 forms
are in `ayaedge_export.vision.int8`. Where weights come from is the caller's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper

from ayaedge.errors import CheckpointError, list_faults
from ayaedge.hardware.machine import usable_threads
from ayaedge_export.checkpoint.config import VisionConfig
from ayaedge_export.checkpoint.spec import CONNECTOR, TOWER, layer_prefix
from ayaedge_export.checkpoint.tensors import WeightSource

PRODUCER_NAME, PRODUCER_VERSION = "ayaedge", "1"
OPSET = 20
"""The first with Gelu, and old enough for DirectML (which stops at 21)."""
CONTRIB_DOMAIN = "com.microsoft"
IR_VERSION = 9
EXTERNAL_THRESHOLD = 64 * 2**20
"""Bytes of weights above which they go to a `.data` file next to the graph."""
MIN_EXTERNAL_TENSOR = 4096
"""Bytes below which a tensor stays in the graph; shape inference must be able to read the shapes."""
PAGE = 4096
"""Alignment of external tensors in bytes, so that a runtime can map them into memory."""
_SLAB_COLUMNS = 128

INPUT_NAME, OUTPUT_NAME = "pixel_values", "image_embeddings"
FloatPrecision = Literal["fp32", "fp16"]
FLOAT_TYPES: dict[FloatPrecision, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16}


class GraphWriter:
    """Collects nodes, and writes each weight to disk as soon as it is given.

    With `external` the weights go to `<path>.data`, so that memory holds one of them at a time; without it
    they stay inside the graph. The same calls give the same bytes. float32 constants are stored as `dtype`.
    A context manager: leaving it closes the data file.
    """

    def __init__(self, path: Path, *, dtype: DTypeLike = np.float32, external: bool = False) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self._graph = onnx.GraphProto(name="vision")
        self._constants: set[str] = set()
        self._nodes: set[str] = set()
        self._data = Path(f"{path}.data").open("wb") if external else None  # noqa: SIM115

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._data is not None:
            self._data.close()

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Store a tensor once under `name` and return that name. CheckpointError if fp16 cannot hold it."""
        if name in self._constants:
            return name
        self._constants.add(name)
        if array.dtype == np.float32:
            array = self._converted(name, array)
        array = np.ascontiguousarray(array)
        data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = self._graph.initializer.add(name=name, data_type=data_type, dims=array.shape)
        if self._data is None or array.nbytes < MIN_EXTERNAL_TENSOR:
            tensor.raw_data = array.tobytes()
        else:
            self._append(tensor, array)
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        *,
        outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node called `name` and return its output, which has that name (`name.0`, ... if several)."""
        self._nodes.add(name)
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        self._graph.node.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return name

    def has_node(self, name: str) -> bool:
        """Whether a node of this name was added."""
        return name in self._nodes

    def reshape(self, x: str, name: str, *shape: int) -> str:
        """Add a Reshape to `shape`, in which one size may be -1."""
        target = "shape." + "x".join(map(str, shape))
        return self.node("Reshape", [x, self.constant(target, np.array(shape, np.int64))], name)

    def save(self, source: onnx.ValueInfoProto, result: onnx.ValueInfoProto) -> None:
        """Write the `.onnx` file, which refers to the data file by its name."""
        self._graph.input.append(source)
        self._graph.output.append(result)
        contrib = any(node.domain == CONTRIB_DOMAIN for node in self._graph.node)
        opsets = [helper.make_opsetid("", OPSET)] + [helper.make_opsetid(CONTRIB_DOMAIN, 1)] * contrib
        model = helper.make_model(
            self._graph,
            opset_imports=opsets,
            ir_version=IR_VERSION,
            producer_name=PRODUCER_NAME,
            producer_version=PRODUCER_VERSION,
        )
        self.path.write_bytes(model.SerializeToString(deterministic=True))

    def _converted(self, name: str, array: NDArray[np.float32]) -> NDArray[Any]:
        if self.dtype == np.float32:
            return array if array.flags.c_contiguous else convert(array, self.dtype)
        largest = max(array.max(), -array.min())
        if not largest <= np.finfo(self.dtype).max:
            raise CheckpointError(f"{name} does not fit {self.dtype}: its largest magnitude is {largest:g}")
        return convert(array, self.dtype)

    def _append(self, tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
        assert self._data is not None
        offset = -(-self._data.tell() // PAGE) * PAGE
        self._data.write(bytes(offset - self._data.tell()))
        self._data.write(array.data.cast("B"))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entries = {"location": f"{self.path.name}.data", "offset": offset, "length": array.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))


def convert(array: NDArray[np.float32], dtype: DTypeLike) -> NDArray[Any]:
    """A C-ordered copy in another type, made on all usable threads in slabs that fit their caches.

    numpy takes three times as long for a large transposed array.
    """
    if array.ndim < 2:
        return array.astype(dtype)
    converted = np.empty(array.shape, dtype)

    def fill(start: int) -> None:
        slab = (..., slice(start, start + _SLAB_COLUMNS))
        converted[slab] = array[slab].astype(dtype)  # keeps the order in memory; the assignment turns it

    with ThreadPoolExecutor(usable_threads()) as pool:
        list(pool.map(fill, range(0, array.shape[-1], _SLAB_COLUMNS)))
    return converted


EmitLinear = Callable[[GraphWriter, str, str], str]
"""(graph, input (rows, in), name without `.weight`) to output (rows, out)."""
EmitMlp = Callable[[GraphWriter, str, str], str]
"""(graph, input (rows, hidden), what the names of its tensors begin with) to output (rows, hidden)."""
EmitAttention = Callable[[GraphWriter, VisionConfig, Sequence[str], str], str]
"""(graph, config, query, key and value (rows, hidden), name) to output (rows, hidden)."""


def write_vision_graph(
    path: Path,
    config: VisionConfig,
    weights: WeightSource,
    *,
    precision: FloatPrecision = "fp32",
    external_threshold: int = EXTERNAL_THRESHOLD,
) -> None:
    """Write the float graph to `path`, and weights that exceed the threshold (bytes) to `<path>.data`.

    Input `pixel_values` (tiles, 3, S, S) and output `image_embeddings` (tiles, T, output_size) are float32
    in both precisions. Raises CheckpointError for a shape that pixel shuffle or attention cannot divide, and
    for a weight that fp16 cannot hold.
    """
    dtype = FLOAT_TYPES[precision]
    size = weight_count(config) * np.dtype(dtype).itemsize
    with GraphWriter(path, dtype=dtype, external=size > external_threshold) as graph:
        build_vision_graph(graph, config, weights, linear=float_linear(weights), attention=standard_attention)
        graph.save(*declare_tiles(config))


def weight_count(config: VisionConfig) -> int:
    """Parameters of tower and connector."""
    return sum(math.prod(shape) for shape in config.tensors.values())


def declare_tiles(config: VisionConfig) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """The graph's input and output, with a free number of tiles."""
    declare = helper.make_tensor_value_info
    pixels = ("tiles", 3, config.image_size, config.image_size)
    embeddings = ("tiles", config.tokens_per_tile, config.output_size)
    return (
        declare(INPUT_NAME, onnx.TensorProto.FLOAT, pixels),
        declare(OUTPUT_NAME, onnx.TensorProto.FLOAT, embeddings),
    )


def build_vision_graph(
    graph: GraphWriter,
    config: VisionConfig,
    weights: WeightSource,
    *,
    linear: EmitLinear,
    attention: EmitAttention,
    mlp: EmitMlp | None = None,
) -> None:
    """Emit everything from `pixel_values` to `image_embeddings`; an `mlp` is made of linears by default.

    Between the two, activations are matrices of one row per patch (later per token) of all tiles, so that no
    operator depends on the number of tiles; only attention separates them again.
    """
    check_divisible(config)
    mlp = mlp or gelu_mlp(linear)
    x = _embed(graph, config, weights)
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        normed = _layer_norm(graph, weights, x, f"{prefix}.layer_norm1", config.layer_norm_eps)
        heads = [
            linear(graph, normed, f"{prefix}.self_attn.{name}") for name in ("q_proj", "k_proj", "v_proj")
        ]
        mixed = attention(graph, config, heads, f"{prefix}.self_attn")
        mixed = linear(graph, mixed, f"{prefix}.self_attn.out_proj")
        x = graph.node("Add", [x, mixed], f"{prefix}.after_attention")
        normed = _layer_norm(graph, weights, x, f"{prefix}.layer_norm2", config.layer_norm_eps)
        x = graph.node("Add", [x, mlp(graph, normed, f"{prefix}.mlp")], f"{prefix}.after_mlp")
    _connect(graph, config, weights, x, linear)


def check_divisible(config: VisionConfig) -> None:
    """Raise CheckpointError if a quantity cannot be divided as the network does it, all faults at once."""
    side, hidden = config.patches_per_side, config.hidden_size
    divisions = (
        (side, config.downsample_factor, "patches per side by downsample_factor"),
        (hidden, config.num_heads, "hidden_size by num_heads"),
        (config.adapter_size, 2, "adapter_size by the two halves of SwiGLU"),
    )
    faults = [f"{what}: {whole} / {parts}" for whole, parts, what in divisions if whole % parts]
    if faults:
        raise CheckpointError(list_faults("the vision configuration does not divide evenly", faults))


def float_linear(weights: WeightSource) -> EmitLinear:
    """Linears as a float matmul, x W + b, with W stored as (in, out)."""

    def emit(graph: GraphWriter, x: str, name: str) -> str:
        weight = graph.constant(f"{name}.weight", weights(f"{name}.weight").T)
        product = graph.node("MatMul", [x, weight], f"{name}.product")
        return add_bias(graph, weights, product, name)

    return emit


def gelu_mlp(linear: EmitLinear) -> EmitMlp:
    """An MLP as two linears with GELU between them."""

    def emit(graph: GraphWriter, x: str, name: str) -> str:
        inner = linear(graph, x, f"{name}.fc1")
        inner = graph.node("Gelu", [inner], f"{name}.gelu", approximate="tanh")
        return linear(graph, inner, f"{name}.fc2")

    return emit


def add_bias(graph: GraphWriter, weights: WeightSource, product: str, name: str) -> str:
    """The last step of every linear: the node that bears its name."""
    return graph.node("Add", [product, graph.constant(f"{name}.bias", weights(f"{name}.bias"))], name)


def standard_attention(graph: GraphWriter, config: VisionConfig, heads: Sequence[str], name: str) -> str:
    """Softmax attention in standard operators; the query is scaled first, which keeps fp16 in range."""
    patches, head_dim = config.patches_per_side**2, config.hidden_size // config.num_heads
    split = [
        # (rows, hidden) -> (tiles, patches, heads, head_dim)
        graph.reshape(x, f"{name}.{part}.heads", -1, patches, config.num_heads, head_dim)
        for x, part in zip(heads, "qkv", strict=True)
    ]
    # query and value -> (tiles, heads, patches, head_dim), key -> (tiles, heads, head_dim, patches)
    query, key, value = (
        graph.node("Transpose", [x], f"{name}.{part}.turned", perm=perm)
        for x, part, perm in zip(split, "qkv", ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True)
    )
    scale = graph.constant("attention_scale", np.array(head_dim**-0.5, np.float32))
    query = graph.node("Mul", [query, scale], f"{name}.q.scaled")
    scores = graph.node("MatMul", [query, key], f"{name}.scores")
    scores = graph.node("Softmax", [scores], f"{name}.softmax", axis=-1)
    mixed = graph.node("MatMul", [scores, value], f"{name}.mixed")
    mixed = graph.node("Transpose", [mixed], f"{name}.mixed.turned", perm=[0, 2, 1, 3])
    return graph.reshape(mixed, f"{name}.mixed.rows", -1, config.hidden_size)


def _embed(graph: GraphWriter, config: VisionConfig, weights: WeightSource) -> str:
    name, patches = f"{TOWER}.embeddings", config.patches_per_side**2
    pixels = INPUT_NAME
    if graph.dtype != np.float32:
        to = helper.np_dtype_to_tensor_dtype(graph.dtype)
        pixels = graph.node("Cast", [pixels], f"{name}.cast", to=to)
    kernel, bias, position = (
        graph.constant(f"{name}.{tensor}", weights(f"{name}.{tensor}"))
        for tensor in ("patch_embedding.weight", "patch_embedding.bias", "position_embedding.weight")
    )
    patch = [config.patch_size, config.patch_size]
    x = graph.node("Conv", [pixels, kernel, bias], f"{name}.conv", kernel_shape=patch, strides=patch)
    # (tiles, hidden, side, side) -> (tiles, hidden, patches) -> (tiles, patches, hidden) -> (rows, hidden)
    x = graph.reshape(x, f"{name}.flat", -1, config.hidden_size, patches)
    x = graph.node("Transpose", [x], f"{name}.turned", perm=[0, 2, 1])
    x = graph.node("Add", [x, position], name)
    return graph.reshape(x, f"{name}.rows", -1, config.hidden_size)


def _connect(
    graph: GraphWriter, config: VisionConfig, weights: WeightSource, features: str, linear: EmitLinear
) -> None:
    x = _pixel_shuffle(graph, config, features)
    x = _layer_norm(graph, weights, x, f"{CONNECTOR}.layernorm", config.adapter_layer_norm_eps)
    x = linear(graph, x, f"{CONNECTOR}.linear_1")
    # the first half is the value, the second the gate
    halves = graph.node("Split", [x], f"{CONNECTOR}.half", outputs=2, axis=-1, num_outputs=2)
    gate = graph.node("Sigmoid", [f"{halves}.1"], f"{CONNECTOR}.sigmoid")
    gate = graph.node("Mul", [f"{halves}.1", gate], f"{CONNECTOR}.silu")
    x = graph.node("Mul", [f"{halves}.0", gate], f"{CONNECTOR}.swiglu")
    x = linear(graph, x, f"{CONNECTOR}.linear_2")
    half_precision = graph.dtype != np.float32
    target = f"{CONNECTOR}.tiles" if half_precision else OUTPUT_NAME
    x = graph.reshape(x, target, -1, config.tokens_per_tile, config.output_size)
    if half_precision:
        graph.node("Cast", [x], OUTPUT_NAME, to=onnx.TensorProto.FLOAT)


def _pixel_shuffle(graph: GraphWriter, config: VisionConfig, x: str) -> str:
    """Join squares of patches in reading order: (rows, hidden) to (tiles * T, hidden * f^2)."""
    factor, side, hidden = config.downsample_factor, config.tokens_per_side, config.hidden_size
    name = f"{CONNECTOR}.shuffle"
    # (rows, hidden) -> (tiles * side, f, side, f * hidden) -> (tiles * side, side, f, f * hidden)
    x = graph.reshape(x, f"{name}.split", -1, factor, side, factor * hidden)
    x = graph.node("Transpose", [x], f"{name}.turned", perm=[0, 2, 1, 3])
    return graph.reshape(x, name, -1, factor * factor * hidden)


def _layer_norm(graph: GraphWriter, weights: WeightSource, x: str, name: str, eps: float) -> str:
    scale, bias = (graph.constant(f"{name}.{part}", weights(f"{name}.{part}")) for part in ("weight", "bias"))
    return graph.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=eps)
