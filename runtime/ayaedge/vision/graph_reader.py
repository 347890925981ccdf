"""What an ONNX file says, read before ONNX Runtime sees it: nodes, tensors, inputs and outputs, and all that is odd.

A graph comes with a bundle, and so from strangers. Only what `ayaedge export` writes is known here: operators without
graphs inside, weights in the file itself or in the one next to it. Anything else is a fault.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ayaedge.checks import shown
from ayaedge.vision.protobuf import Part, WireError, signed

ITEM_BYTES = {1: 4, 2: 1, 3: 1, 7: 8, 10: 2}
"""ONNX's numbers of float32, uint8, int8, int64 and float16, and bytes of each."""
FLOAT, INT64 = 1, 7
_EXTERNAL = 1
_VALUES = {2: 1, 3: 2, 4: 3, 5: 4, 8: 7}
"""Field of an attribute's value to the number of its type: float, integer, string, tensor, integers."""
SMALL = 64
"""Whole numbers in a tensor that may be a shape."""
_MOST_RANK = 8
_MOST_NODES = 1 << 15
"""Ten times what the released tower has."""
_MODEL, _GRAPH, _NODE = {1, 2, 3, 5, 6, 7, 8}, {1, 2, 5, 10, 11, 12}, {1, 2, 3, 4, 5, 6, 7}
_ATTRIBUTE, _TENSOR, _INFO = {1, 2, 3, 4, 5, 8, 13, 20}, {1, 2, 8, 9, 12, 13, 14}, {1, 2, 3}
"""Numbers of the fields that the exporter may write (onnx.proto3)."""


@dataclass(frozen=True)
class Tensor:
    """A weight or constant."""

    name: str
    kind: int
    dims: tuple[int, ...]
    numbers: NDArray[np.int64] | None = None
    """Its values, if they are few whole numbers."""

    @property
    def items(self) -> int:
        return math.prod(self.dims)


Attribute = int | str | tuple[int, ...] | Tensor | None
"""Value of an attribute; None for a float, which decides about no size."""


@dataclass(frozen=True)
class Node:
    """An operator."""

    operator: str
    """Its name, behind the name of its domain and a dot, if that is not ONNX's own."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]


@dataclass(frozen=True)
class Declared:
    """An input or output: its type and sizes, None where they are free."""

    name: str
    kind: int
    dims: tuple[int | None, ...]


@dataclass
class Graph:
    """What was read of a file."""

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[Declared] = field(default_factory=list)
    outputs: list[Declared] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


class GraphReader:
    """Reads one model. `data_name` is the only other file that weights may lie in, `data_size` its size in bytes."""

    def __init__(self, data_name: str, data_size: int) -> None:
        self._data_name, self._data_size, self._outside = data_name, data_size, 0
        self.graph = Graph()

    def read(self, model: Part) -> Graph:
        """The graph with its faults; WireError for what is no message at all."""
        found = self._fields(model, _MODEL, {8}, "the model")
        if 7 not in found:
            raise WireError("it holds no graph")
        for opset in _parts(found, 8):
            stated = self._fields(opset, {1, 2}, (), "an operator set")
            self.graph.opsets[_text(stated, 1)] = _number(stated, 2)
        for graph in _parts(found, 7):
            self._read_graph(graph)
        if self._outside > self._data_size:
            self._fault(
                f"its weights take {self._outside} bytes of {self._data_name}, which has {self._data_size}"
            )
        return self.graph

    def _read_graph(self, part: Part) -> None:
        found = self._fields(part, _GRAPH, {1, 5, 11, 12}, "the graph")
        nodes = _parts(found, 1)
        if len(nodes) > _MOST_NODES:
            self._fault(f"it has {len(nodes)} operators, more than {_MOST_NODES}")
            return
        for initializer in _parts(found, 5):
            tensor = self._tensor(initializer)
            if tensor.name in self.graph.tensors:
                self._fault(f"it has two tensors {shown(tensor.name)}")
            self.graph.tensors[tensor.name] = tensor
        self.graph.inputs += map(self._declared, _parts(found, 11))
        self.graph.outputs += map(self._declared, _parts(found, 12))
        self.graph.nodes += map(self._node, nodes)

    def _node(self, part: Part) -> Node:
        found = self._fields(part, _NODE, {1, 2, 5}, "an operator")
        domain, operator = _text(found, 7), _text(found, 4)
        attributes: dict[str, Attribute] = {}
        for attribute in _parts(found, 5):
            name, value = self._attribute(attribute, operator)
            if name in attributes:
                self._fault(f"an operator {shown(operator)} has {shown(name)} twice")
            attributes[name] = value
        inputs, outputs = (tuple(one.text() for one in _parts(found, number)) for number in (1, 2))
        return Node(f"{domain}.{operator}" if domain else operator, inputs, outputs, attributes)

    def _attribute(self, part: Part, operator: str) -> tuple[str, Attribute]:
        found = self._fields(part, _ATTRIBUTE, {8}, f"an attribute of {shown(operator)}")
        name, values = _text(found, 1), [number for number in _VALUES if number in found]
        if len(values) != 1 or _number(found, 20) != _VALUES[values[0]]:
            self._fault(f"attribute {shown(name)} of {shown(operator)} has no value of its type")
        elif 3 in found:
            return name, signed(_number(found, 3))
        elif 4 in found:
            return name, _text(found, 4)
        elif 5 in found:
            return name, self._tensor(_parts(found, 5)[0])
        elif 8 in found:
            return name, _integers(found, 8)
        return name, None

    def _tensor(self, part: Part) -> Tensor:
        found = self._fields(part, _TENSOR, {1, 13}, "a tensor")
        name, kind, dims = _text(found, 8), _number(found, 2), _integers(found, 1)
        if kind not in ITEM_BYTES or len(dims) > _MOST_RANK or any(size < 0 for size in dims):
            self._fault(f"tensor {shown(name)} has type {kind} and sizes {shown(dims)}, which no weight has")
            return Tensor(name, FLOAT, ())
        wanted = math.prod(dims) * ITEM_BYTES[kind]
        if _number(found, 14) == _EXTERNAL:
            self._check_outside(name, wanted, _parts(found, 13))
            return Tensor(name, kind, dims)
        raw = _parts(found, 9)
        held = raw[0].size if raw else 0
        if held != wanted or 13 in found:
            self._fault(
                f"tensor {shown(name)} of sizes {shown(dims)} must hold {wanted} bytes, it holds {held}"
            )
        elif kind == INT64 and held <= 8 * SMALL:
            numbers = np.frombuffer(raw[0].bytes() if raw else b"", "<i8").astype(np.int64).reshape(dims)
            return Tensor(name, kind, dims, numbers)
        return Tensor(name, kind, dims)

    def _check_outside(self, name: str, wanted: int, entries: list[Part]) -> None:
        stated: dict[str, str] = {}
        for entry in entries:
            found = self._fields(entry, {1, 2}, (), "a place of a weight")
            key = _text(found, 1)
            stated[key] = _text(found, 2) if key not in stated else ""
        place, length = (_decimal(stated.get(key, "0")) for key in ("offset", "length"))
        known = (
            stated.keys() <= {"location", "offset", "length"} and stated.get("location") == self._data_name
        )
        if not known or place is None or length != wanted or place + wanted > self._data_size:
            self._fault(
                f"tensor {shown(name)} must lie in {self._data_name} with {wanted} bytes, it lies at {shown(stated)}"
            )
        self._outside += wanted

    def _declared(self, part: Part) -> Declared:
        found = self._fields(part, _INFO, (), "an input or output")
        kind, dims = 0, list[int | None]()
        for stated in _parts(found, 2):
            for tensor in _parts(self._fields(stated, {1, 6}, (), "a type"), 1):
                form = self._fields(tensor, {1, 2}, (), "a type")
                kind = _number(form, 1)
                for shape in _parts(form, 2):
                    sizes = _parts(self._fields(shape, {1}, {1}, "a shape"), 1)
                    dims += [self._size(size) for size in sizes]
        return Declared(_text(found, 1), kind, tuple(dims))

    def _size(self, part: Part) -> int | None:
        found = self._fields(part, {1, 2, 3}, (), "a size")
        return signed(_number(found, 1)) if 1 in found else None

    def _fields(
        self, part: Part, known: Collection[int], many: Collection[int], what: str
    ) -> dict[int, list[int | Part]]:
        """Values of a message by number; a fault for what is not known, or stands twice where it may not."""
        found: dict[int, list[int | Part]] = {}
        for number, value in part.fields():
            if number not in known or (number in found and number not in many):
                self._fault(f"{what} holds field {number}{' twice' * (number in known)}, which no bundle has")
            found.setdefault(number, []).append(value)
        return found

    def _fault(self, text: str) -> None:
        if text not in self.graph.faults[-3:]:
            self.graph.faults.append(text)


def _parts(found: dict[int, list[int | Part]], number: int) -> list[Part]:
    values = found.get(number, [])
    parts = [value for value in values if isinstance(value, Part)]
    if len(parts) != len(values):
        raise WireError("a field of a wrong kind")
    return parts


def _number(found: dict[int, list[int | Part]], number: int) -> int:
    value = found.get(number, [0])[-1]
    if not isinstance(value, int):
        raise WireError("a field of a wrong kind")
    return value


def _text(found: dict[int, list[int | Part]], number: int) -> str:
    parts = _parts(found, number)
    return parts[-1].text() if parts else ""


def _integers(found: dict[int, list[int | Part]], number: int) -> tuple[int, ...]:
    numbers: list[int] = []
    for value in found.get(number, []):
        numbers += value.integers() if isinstance(value, Part) else [signed(value)]
    return tuple(numbers)


def _decimal(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
