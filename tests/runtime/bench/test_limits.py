"""The least time of a step, from made-up limits and shapes, and the graphs that limits are measured with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pytest

from ayaedge.bench.limits import Limits, Work, answer_work, block_weights, graph_work, prompt_work
from ayaedge.bench.matrix_peak import Kind, product_graph
from ayaedge.decoder.gguf_header import DecoderFigures

LIMITS = Limits(read_bandwidth=10e9, float32_peak=100e9, int8_peak=400e9)
TINY = DecoderFigures(
    architecture="cohere2", layers=4, hidden=8, heads=2, kv_heads=1, head_dim=4, feed_forward=16, vocab_size=100,
    window=10, window_pattern=(True, True, True, False), layer_bytes=(300, 300, 300, 300), other_bytes=500,
)  # fmt: skip
BLOCK = 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16
"""Weights of a block of TINY: queries and output, keys and values, three matrices of the feed-forward."""


def event(operator: str, inputs: list[list[int]], output: list[int], name: str = "n") -> dict[str, Any]:
    arguments = {
        "op_name": operator,
        "input_type_shape": [{"float": shape} for shape in inputs],
        "output_type_shape": [{"float": output}],
    }
    return {"name": f"{name}_kernel_time", "args": arguments}


def test_computing_and_reading_go_on_at_the_same_time() -> None:
    assert Work(int8=400e9, float32=50e9).least_seconds(LIMITS) == pytest.approx(1.5)
    assert Work(int8=400e9, float32=50e9, read_bytes=10e9).least_seconds(LIMITS) == pytest.approx(1.5)
    assert Work(int8=400e9, float32=50e9, read_bytes=20e9).least_seconds(LIMITS) == pytest.approx(2.0)


def test_without_kernels_for_bytes_float32_is_the_limit() -> None:
    assert Work(int8=400e9).least_seconds(replace(LIMITS, int8_peak=None)) == pytest.approx(4.0)


def test_a_prompt_multiplies_every_block_and_one_row_of_the_head() -> None:
    assert block_weights(TINY) == 4 * BLOCK
    work = prompt_work(TINY, 3)
    assert work.int8 == 3 * 2 * 4 * BLOCK + 2 * 8 * 100
    assert work.float32 == 4 * 2 * 4 * 4 * (1 + 2 + 3)  # four blocks, each token looks at itself and before
    assert work.read_bytes == 4 * 300 + 500


def test_sliding_blocks_look_back_a_window_only() -> None:
    near, far = 10, 51
    assert prompt_work(TINY, 1, start=50).float32 == 4 * 2 * 4 * (3 * near + far)
    assert prompt_work(replace(TINY, window=None), 1, start=50).float32 == 4 * 2 * 4 * 4 * far
    kept = 2 * 1 * 4 * 2  # keys and values, a head of four, two bytes
    assert answer_work(TINY, 50).read_bytes == 4 * 300 + 500 + kept * (3 * near + far)


def test_weights_of_16_bits_are_multiplied_in_float32() -> None:
    halves = replace(TINY, layer_bytes=(2 * BLOCK,) * 4)
    assert prompt_work(halves, 1).int8 == 0
    assert prompt_work(halves, 1).float32 > 2 * 4 * BLOCK


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "expected"),
    [
        ("MatMulIntegerToFloat", [[676, 1152], [1152, 4304]], [676, 4304], Work(int8=2 * 676 * 1152 * 4304)),
        ("MatMulNBits", [[169, 64], [32, 2, 32]], [169, 32], Work(int8=2 * 169 * 64 * 32)),
        ("MatMul", [[2, 5, 7], [7, 3]], [2, 5, 3], Work(float32=2 * 2 * 5 * 7 * 3)),
        ("MultiHeadAttention", [[2, 5, 8], [2, 6, 8], [2, 6, 8]], [2, 5, 8], Work(float32=4 * 2 * 5 * 6 * 8)),
        ("Conv", [[1, 3, 28, 28], [9, 3, 14, 14]], [1, 9, 2, 2], Work(float32=2 * 9 * 4 * 3 * 14 * 14)),
        ("Add", [[676, 1152], [676, 1152]], [676, 1152], Work()),
    ],
)
def test_products_of_a_graph_are_counted(
    operator: str, inputs: list[list[int]], output: list[int], expected: Work
) -> None:
    assert graph_work([event(operator, inputs, output)] * 3) == expected.times(3)


def test_what_is_no_operator_costs_nothing() -> None:
    other = {**event("MatMul", [[2, 2], [2, 2]], [2, 2]), "name": "MatMul_fence_before"}
    assert graph_work([{"name": "session_initialization"}, {"name": "x", "args": {}}, other]) == Work()


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_graphs_that_limits_are_measured_with_are_products(kind: Kind) -> None:
    rows, inner, columns = 3, 200, 5
    graph = product_graph(kind, (rows, inner, columns))
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    values = np.arange(rows * inner).reshape(rows, inner) % 250
    given = values.astype(np.uint8 if kind == "int8" else np.float32)
    (product,) = session.run(None, {"x": given})
    assert product.tolist() == np.repeat(values.sum(1)[:, None], columns, axis=1).tolist()
