"""How fast the processor multiplies matrices at best: ONNX Runtime's own kernels, and nothing around them.

The graphs have one node and are written here byte by byte, since the package `onnx` is a part of the exporter. What a
peak is the limit of is not known here.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import numpy as np

from ayaedge import ort
from ayaedge.hardware.machine import usable_threads

Kind = Literal["int8", "float32"]

_OPERATORS: dict[Kind, tuple[str, type[Any], type[Any], type[Any]]] = {
    "int8": ("MatMulInteger", np.uint8, np.int8, np.int32),
    "float32": ("MatMul", np.float32, np.float32, np.float32),
}
"""The operator, and the numbers of its activations, weights and product; unsigned times signed is the fast pair."""
_ELEMENTS: dict[type[Any], int] = {np.float32: 1, np.uint8: 2, np.int8: 3, np.int32: 6}
"""ONNX's numbers of element types."""
_SHAPES = ((676, 1152, 4304), (512, 4096, 4096))
"""Rows, columns of the activations, columns of the weights: as in the vision tower, and as in prefill."""
_SECONDS = 0.3
_IR_VERSION, _OPSET = 8, 17


def matrix_peak(kind: Kind) -> float:
    """Operations per second on all threads, a multiplication and an addition being two; takes about a second."""
    return max(_peak(kind, shape) for shape in _SHAPES)


def _peak(kind: Kind, shape: tuple[int, int, int]) -> float:
    rows, inner, columns = shape
    activations = np.ones((rows, inner), _OPERATORS[kind][1])
    onnxruntime = ort.library()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = usable_threads()
    settings.log_severity_level = 4
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        product_graph(kind, shape), settings, providers=["CPUExecutionProvider"]
    )
    session.run(None, {"x": activations})
    best, begin = float("inf"), time.perf_counter()
    while (start := time.perf_counter()) - begin < _SECONDS:
        session.run(None, {"x": activations})
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


def product_graph(kind: Kind, shape: tuple[int, int, int]) -> bytes:
    """An ONNX model of one product `y` of activations `x` (rows, inner) and constant weights (inner, columns)."""
    operator, x, w, y = _OPERATORS[kind]
    rows, inner, columns = shape
    node = _field(1, "x") + _field(1, "w") + _field(2, "y") + _field(4, operator)
    weights = _field(1, inner) + _field(1, columns) + _field(2, _ELEMENTS[w]) + _field(8, "w")
    weights += _field(9, np.ones((inner, columns), w).tobytes())
    graph = _field(1, node) + _field(2, "product") + _field(5, weights)
    graph += _field(11, _value("x", x, (rows, inner))) + _field(12, _value("y", y, (rows, columns)))
    return _field(1, _IR_VERSION) + _field(7, graph) + _field(8, _field(2, _OPSET))


def _value(name: str, element: type[Any], shape: tuple[int, ...]) -> bytes:
    """A `ValueInfoProto`."""
    sizes = b"".join(_field(1, _field(1, size)) for size in shape)
    return _field(1, name) + _field(2, _field(1, _field(1, _ELEMENTS[element]) + _field(2, sizes)))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protocol buffer: a number, or text or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    """Seven bits in each byte, the lowest first; all but the last have the high bit."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
