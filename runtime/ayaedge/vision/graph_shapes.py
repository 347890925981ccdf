"""Sizes of everything that a vision graph computes for one tile, operator by operator.

`RULES` are the operators that `ayaedge export` writes, by itself or traced from PyTorch, with the attributes that they
have there. No other runs. Sizes are known before ONNX Runtime sees the graph, since a few bytes of it (an Expand, a
chain of Concat) could ask for any amount of memory and time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ayaedge.vision.graph_reader import INT64, Attribute, Node, Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """What an operator gives: its sizes, its values if they are a shape, and whether it depends on no tile."""

    shape: Shape
    numbers: NDArray[np.int64] | None = None
    constant: bool = False

    @property
    def items(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Rule:
    """How an operator works."""

    apply: Callable[[Node, Sequence[Value]], list[Value]]
    attributes: frozenset[str] = frozenset()
    inputs: tuple[int, int] = (1, 1)
    """Fewest and most."""


class ShapeError(ValueError):
    """Sizes that do not fit together."""


def work(node: Node, inputs: Sequence[Value], outputs: Sequence[Value]) -> int:
    """Multiplications, or numbers moved where there are none."""
    items = sum(one.items for one in outputs)
    if node.operator == "Conv":
        return items * math.prod(inputs[1].shape[1:])
    if node.operator in _PRODUCTS:
        return items * inputs[0].shape[-1]
    if node.operator == _ATTENTION:
        return 2 * items * inputs[1].shape[1]
    return items


def scores(node: Node, inputs: Sequence[Value]) -> int:
    """Numbers that attention may hold for a moment beside its result."""
    heads = node.attributes.get("num_heads")
    if node.operator != _ATTENTION or not isinstance(heads, int):
        return 0
    return inputs[0].shape[0] * heads * inputs[0].shape[1] * inputs[1].shape[1]


def broadcast(*shapes: Shape) -> Shape:
    """The sizes of an elementwise result; ShapeError if they do not fit."""
    rank = max(map(len, shapes))
    found = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        wide = {size for size in sizes if size != 1}
        if len(wide) > 1:
            raise ShapeError(f"sizes {' and '.join(map(str, shapes))} do not fit")
        found.append(wide.pop() if wide else 1)
    return tuple(found)


def _elementwise(node: Node, inputs: Sequence[Value]) -> list[Value]:
    shape = broadcast(*(one.shape for one in inputs))
    known = [one.numbers for one in inputs]
    if node.operator in _ARITHMETIC and len(known) == 2 and known[0] is not None and known[1] is not None:
        with np.errstate(all="ignore"):
            return [Value(shape, _ARITHMETIC[node.operator](known[0], known[1]).astype(np.int64))]
    return [Value(shape)]


def _same(_: Node, inputs: Sequence[Value]) -> list[Value]:
    return [Value(inputs[0].shape)]


def _cast(node: Node, inputs: Sequence[Value]) -> list[Value]:
    return [Value(inputs[0].shape, inputs[0].numbers if node.attributes.get("to") == INT64 else None)]


def _constant(node: Node, _: Sequence[Value]) -> list[Value]:
    tensor = node.attributes.get("value")
    if not isinstance(tensor, Tensor):
        raise ShapeError("a constant without a value")
    return [Value(tensor.dims, tensor.numbers)]


def _shape(_: Node, inputs: Sequence[Value]) -> list[Value]:
    return [Value((len(inputs[0].shape),), np.array(inputs[0].shape, np.int64))]


def _reshape(node: Node, inputs: Sequence[Value]) -> list[Value]:
    source, wanted = inputs[0].shape, list(_numbers(inputs[1]))
    if not node.attributes.get("allowzero"):
        wanted = [source[i] if size == 0 and i < len(source) else size for i, size in enumerate(wanted)]
    if -1 in wanted:
        rest = -math.prod(wanted)
        wanted[wanted.index(-1)] = inputs[0].items // rest if rest > 0 else 0
    if min(wanted, default=1) < 0 or math.prod(wanted) != inputs[0].items:
        raise ShapeError(f"{source} cannot have the sizes {wanted}")
    numbers = inputs[0].numbers
    return [Value(tuple(wanted), None if numbers is None else numbers.reshape(wanted))]


def _transpose(node: Node, inputs: Sequence[Value]) -> list[Value]:
    order, shape = node.attributes.get("perm"), inputs[0].shape
    if not isinstance(order, tuple) or sorted(order) != list(range(len(shape))):
        raise ShapeError(f"{shape} cannot be turned to {order}")
    return [Value(tuple(shape[i] for i in order))]


def _split(node: Node, inputs: Sequence[Value]) -> list[Value]:
    shape, count = inputs[0].shape, len(node.outputs)
    axis = _axis(node.attributes.get("axis", 0), len(shape))
    part = -(-shape[axis] // count)
    if node.attributes.get("num_outputs") != count or part * (count - 1) >= max(shape[axis], 1):
        raise ShapeError(f"{shape} cannot be split into {count}")
    sizes = [part] * (count - 1) + [shape[axis] - part * (count - 1)]
    return [Value((*shape[:axis], size, *shape[axis + 1 :])) for size in sizes]


def _conv(node: Node, inputs: Sequence[Value]) -> list[Value]:
    (tiles, channels, *image), (kernels, inside, *kernel) = inputs[0].shape, inputs[1].shape
    steps, gaps = (node.attributes.get(name, (1, 1)) for name in ("strides", "dilations"))
    fits = len(image) == len(kernel) == 2 and inside * _integer(node.attributes.get("group", 1)) == channels
    pads = node.attributes.get("auto_pad", "NOTSET")
    if not fits or pads not in ("NOTSET", "VALID") or steps != tuple(kernel) or gaps != (1, 1):
        raise ShapeError(f"patches of {kernel} cannot be cut from {inputs[0].shape}")
    return [Value((tiles, kernels, *(side // patch for side, patch in zip(image, kernel, strict=True))))]


def _matmul(_: Node, inputs: Sequence[Value]) -> list[Value]:
    left, right = inputs[0].shape, inputs[1].shape
    if min(len(left), len(right)) < 2 or left[-1] != right[-2]:
        raise ShapeError(f"{left} cannot be multiplied with {right}")
    return [Value((*broadcast(left[:-2], right[:-2]), left[-2], right[-1]))]


def _block_matmul(node: Node, inputs: Sequence[Value]) -> list[Value]:
    shape, width = inputs[0].shape, _integer(node.attributes.get("N"))
    if not shape or node.attributes.get("K") != shape[-1] or width < 1:
        raise ShapeError(f"{shape} cannot be multiplied with weights of K={node.attributes.get('K')}")
    return [Value((*shape[:-1], width))]


def _attention(node: Node, inputs: Sequence[Value]) -> list[Value]:
    query, key, value = (one.shape for one in inputs)
    if (
        len(query) != 3
        or key != value
        or query[::2] != key[::2]
        or _integer(node.attributes.get("num_heads")) < 1
    ):
        raise ShapeError(f"{query} cannot attend to {key}")
    return [Value(query)]


def _reduce(node: Node, inputs: Sequence[Value]) -> list[Value]:
    shape = inputs[0].shape
    axes = {_axis(int(axis), len(shape)) for axis in _numbers(inputs[1])}
    if node.attributes.get("keepdims", 1):
        return [Value(tuple(1 if i in axes else size for i, size in enumerate(shape)))]
    return [Value(tuple(size for i, size in enumerate(shape) if i not in axes))]


def _gather(node: Node, inputs: Sequence[Value]) -> list[Value]:
    data, places = inputs
    axis = _axis(node.attributes.get("axis", 0), len(data.shape))
    shape = (*data.shape[:axis], *places.shape, *data.shape[axis + 1 :])
    if data.numbers is None or places.numbers is None or axis:
        return [Value(shape)]
    if places.items and not -len(data.numbers) <= places.numbers.min() <= places.numbers.max() < len(
        data.numbers
    ):
        raise ShapeError("an index outside of what it is taken from")
    return [Value(shape, np.asarray(data.numbers[places.numbers]))]


def _concat(node: Node, inputs: Sequence[Value]) -> list[Value]:
    first = inputs[0].shape
    axis = _axis(node.attributes.get("axis"), len(first))
    if any(one.shape[:axis] + one.shape[axis + 1 :] != first[:axis] + first[axis + 1 :] for one in inputs):
        raise ShapeError(f"{' and '.join(str(one.shape) for one in inputs)} cannot be joined")
    shape = (*first[:axis], sum(one.shape[axis] for one in inputs), *first[axis + 1 :])
    known = [one.numbers for one in inputs if one.numbers is not None]
    return [Value(shape, np.concatenate(known, axis) if len(known) == len(inputs) else None)]


def _slice(_: Node, inputs: Sequence[Value]) -> list[Value]:
    shape = list(inputs[0].shape)
    starts, stops = _numbers(inputs[1]), _numbers(inputs[2])
    axes = _numbers(inputs[3]) if len(inputs) > 3 else tuple(range(len(starts)))
    steps = _numbers(inputs[4]) if len(inputs) > 4 else (1,) * len(starts)
    cuts = [slice(None)] * len(shape)
    for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
        if step < 1:
            raise ShapeError("a slice backwards")
        place = _axis(axis, len(shape))
        cuts[place] = slice(start, stop, step)
        shape[place] = len(range(*cuts[place].indices(shape[place])))
    numbers = inputs[0].numbers
    return [Value(tuple(shape), None if numbers is None else numbers[tuple(cuts)])]


def _unsqueeze(_: Node, inputs: Sequence[Value]) -> list[Value]:
    axes = _numbers(inputs[1])
    rank = len(inputs[0].shape) + len(axes)
    places = {_axis(axis, rank) for axis in axes}
    rest = iter(inputs[0].shape)
    shape = tuple(1 if i in places else next(rest) for i in range(rank))
    numbers = inputs[0].numbers
    return [Value(shape, None if numbers is None else numbers.reshape(shape))]


def _expand(_: Node, inputs: Sequence[Value]) -> list[Value]:
    wanted = _numbers(inputs[1])
    if min(wanted, default=0) < 0:
        raise ShapeError(f"a size below 0 in {wanted}")
    return [Value(broadcast(inputs[0].shape, wanted))]


def _numbers(value: Value) -> tuple[int, ...]:
    if value.numbers is None or value.numbers.ndim > 1:
        raise ShapeError("sizes that depend on the image")
    return tuple(map(int, value.numbers.reshape(-1)))


def _axis(axis: Attribute, rank: int) -> int:
    number = _integer(axis)
    if not -rank <= number < rank:
        raise ShapeError(f"axis {number} of {rank}")
    return number % rank


def _integer(value: Attribute) -> int:
    if not isinstance(value, int):
        raise ShapeError(f"{value!r:.80} is no whole number")
    return value


_ARITHMETIC: dict[str, Callable[..., NDArray[np.int64]]] = {
    "Add": np.add,
    "Mul": np.multiply,
    "Div": lambda a, b: np.where(b == 0, 0, np.trunc(a / np.where(b == 0, 1, b))),
}
_ATTENTION = "com.microsoft.MultiHeadAttention"
_PRODUCTS = ("MatMul", "com.microsoft.MatMulIntegerToFloat", "com.microsoft.MatMulNBits")
_BLOCK_ATTRIBUTES = frozenset({"K", "N", "bits", "block_size", "accuracy_level"})

RULES: dict[str, Rule] = {
    "Add": Rule(_elementwise, inputs=(2, 2)),
    "Cast": Rule(_cast, frozenset({"to"})),
    "Concat": Rule(_concat, frozenset({"axis"}), (1, 64)),
    "Constant": Rule(_constant, frozenset({"value"}), (0, 0)),
    "Conv": Rule(_conv, frozenset({"auto_pad", "dilations", "group", "kernel_shape", "strides"}), (2, 3)),
    "Div": Rule(_elementwise, inputs=(2, 2)),
    "Expand": Rule(_expand, inputs=(2, 2)),
    "Gather": Rule(_gather, frozenset({"axis"}), (2, 2)),
    "Gelu": Rule(_same, frozenset({"approximate"})),
    "LayerNormalization": Rule(_same, frozenset({"axis", "epsilon"}), (3, 3)),
    "MatMul": Rule(_matmul, inputs=(2, 2)),
    "Max": Rule(_elementwise, inputs=(3, 3)),
    "Mul": Rule(_elementwise, inputs=(2, 2)),
    "QuantizeLinear": Rule(_same, frozenset({"axis"}), (3, 3)),
    "ReduceMax": Rule(_reduce, frozenset({"keepdims"}), (2, 2)),
    "ReduceMin": Rule(_reduce, frozenset({"keepdims"}), (2, 2)),
    "Reshape": Rule(_reshape, frozenset({"allowzero"}), (2, 2)),
    "Shape": Rule(_shape),
    "Sigmoid": Rule(_same),
    "Slice": Rule(_slice, inputs=(3, 5)),
    "Softmax": Rule(_same, frozenset({"axis"})),
    "Split": Rule(_split, frozenset({"axis", "num_outputs"})),
    "Tanh": Rule(_same),
    "Transpose": Rule(_transpose, frozenset({"perm"})),
    "Unsqueeze": Rule(_unsqueeze, inputs=(2, 2)),
    "com.microsoft.MatMulIntegerToFloat": Rule(_matmul, inputs=(5, 5)),
    "com.microsoft.MatMulNBits": Rule(_block_matmul, _BLOCK_ATTRIBUTES, (3, 3)),
    _ATTENTION: Rule(_attention, frozenset({"num_heads"}), (3, 3)),
}
