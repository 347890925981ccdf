"""What a machine can do at most, what a model asks of it, and so the least time that a step can take.

Arithmetic over measured limits, the header of decoder.gguf and the events of a profiled run of the vision graph; the
only measurement here is that of the limits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ayaedge.bench.matrix_peak import matrix_peak
from ayaedge.decoder.gguf_header import DecoderFigures
from ayaedge.hardware.machine import gemm_peak, read_bandwidth

_QUANTIZED_BELOW = 16
"""Bits per weight below which llama.cpp multiplies in integers of 8 bits."""
_CACHE_ELEMENT = 2
"""Bytes of an f16 key or value."""
_INTEGER = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits")
_FLOAT = ("MatMul", "FusedMatMul", "Gemm")
_ATTENTION = ("MultiHeadAttention", "Attention")


@dataclass(frozen=True)
class Limits:
    """What this machine was measured to do at most."""

    read_bandwidth: float
    """Bytes per second from main memory."""
    float32_peak: float
    """Operations per second of matrix products; a multiplication and an addition are two."""
    int8_peak: float | None = None
    """The same for bytes; None if there are no such kernels, and float32 is the limit."""


@dataclass(frozen=True)
class Work:
    """What a step asks of a machine at least."""

    int8: float = 0.0
    """Operations of products of bytes."""
    float32: float = 0.0
    """All other operations of products."""
    read_bytes: float = 0.0
    """From main memory."""

    def __add__(self, other: Work) -> Work:
        return Work(self.int8 + other.int8, self.float32 + other.float32, self.read_bytes + other.read_bytes)

    def times(self, count: float) -> Work:
        """The same work again and again."""
        return Work(self.int8 * count, self.float32 * count, self.read_bytes * count)

    def least_seconds(self, limits: Limits) -> float:
        """How long it takes at the limits: computing and reading go on at the same time."""
        computing = self.int8 / (limits.int8_peak or limits.float32_peak) + self.float32 / limits.float32_peak
        return max(computing, self.read_bytes / limits.read_bandwidth)


def measure_limits() -> Limits:
    """Measure this machine with all its threads, for a few seconds; of two libraries' float32 the faster one counts."""
    return Limits(read_bandwidth(), max(matrix_peak("float32"), gemm_peak()), matrix_peak("int8"))


def prompt_work(figures: DecoderFigures, count: int, *, start: int = 0) -> Work:
    """Of `count` tokens of a prompt behind `start` others: products of all blocks, and one row of the output head.

    Weights are read once; each token looks back over what its block lets it see.
    """
    linear = 2.0 * count * block_weights(figures) + 2.0 * figures.hidden * figures.vocab_size
    seen = sum(_seen(figures, start, count))
    attention = 4.0 * figures.heads * figures.head_dim * seen
    read = float(figures.weight_bytes)
    if _is_quantized(figures):
        return Work(int8=linear, float32=attention, read_bytes=read)
    return Work(float32=linear + attention, read_bytes=read)


def answer_work(figures: DecoderFigures, context: int) -> Work:
    """Of one token of an answer behind `context` others: every weight is read, and every key and value it looks at."""
    kept = 2 * figures.kv_heads * figures.head_dim * _CACHE_ELEMENT
    cached = sum(_seen(figures, context, 1)) * kept
    return prompt_work(figures, 1, start=context) + Work(read_bytes=cached)


def block_weights(figures: DecoderFigures) -> int:
    """Weights of the matrices of all blocks."""
    attention = figures.hidden * figures.head_dim * 2 * (figures.heads + figures.kv_heads)
    return figures.layers * (attention + 3 * figures.hidden * figures.feed_forward)


def graph_work(events: Iterable[Mapping[str, Any]]) -> Work:
    """The products in the events of ONNX Runtime's profile of one run; all that is done beside them costs nothing here.

    The shapes are those that were run, so the format of the graph does not matter.
    """
    total = Work()
    for event in events:
        facts = event.get("args") or {}
        if "output_type_shape" in facts and str(event.get("name", "")).endswith("_kernel_time"):
            total += _product(
                facts["op_name"], _shapes(facts["input_type_shape"]), _shapes(facts["output_type_shape"])
            )
    return total


def _product(operator: str, inputs: Sequence[list[int]], outputs: Sequence[list[int]]) -> Work:
    if operator in _INTEGER:
        return Work(int8=2.0 * math.prod(outputs[0]) * inputs[0][-1])
    if operator in _FLOAT:
        return Work(float32=2.0 * math.prod(outputs[0]) * inputs[0][-1])
    if (
        operator in _ATTENTION
    ):  # (n, [heads,] queries, width) and (n, [heads,] keys, width): scores, then the mix
        return Work(float32=4.0 * math.prod(inputs[0]) * inputs[1][-2])
    if operator == "Conv":
        return Work(float32=2.0 * math.prod(outputs[0]) * math.prod(inputs[1][1:]))
    return Work()


def _shapes(typed: Iterable[Mapping[str, list[int]]]) -> list[list[int]]:
    return [next(iter(entry.values()), []) for entry in typed]


def _seen(figures: DecoderFigures, start: int, count: int) -> list[float]:
    """How many positions all tokens together look at, for each block."""
    ends = np.arange(start + 1, start + count + 1, dtype=np.float64)
    everything, window = float(ends.sum()), figures.window
    near = everything if window is None else float(np.minimum(ends, window).sum())
    return [near if slides else everything for slides in _slides(figures)]


def _slides(figures: DecoderFigures) -> tuple[bool, ...]:
    return figures.window_pattern if figures.window is not None else (False,) * figures.layers


def _is_quantized(figures: DecoderFigures) -> bool:
    return 8 * sum(figures.layer_bytes) < _QUANTIZED_BELOW * block_weights(figures)
