"""How long an effort will take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ayaedge.hardware.machine import usable_threads
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.effort import MAX_TOKENS, PROBE_TOKENS, SENSITIVITY_TOKENS, Effort, FloatArray
from ayaedge_export.matmul_threads import bounded_matmul
from ayaedge_quant.matmul import multiply
from ayaedge_quant.number_formats import GgmlType, encode

_ALL_STREAMS = 23
"""Streams of probes: 7 linears in each third of the layers, the head, and the exact one."""
_STREAMS = 16
"""Those that go through a layer, on average: a third's begin with it."""
_NEXT_TO_MATMULS = 0.2
"""Attention, Hessians and images, as a share of the matmuls' time on a processor: measured at the 8B's width."""


def predict_seconds(checkpoint: Checkpoint, effort: Effort, tokens: int = MAX_TOKENS) -> float:
    """What the work on the decoder will take on this machine, from its speed in a moment's trial.

    Nothing for what all efforts do: reading, checking, the vision tower.
    """
    text = checkpoint.config.text
    layer_weights = text.hidden_size * (
        2 * text.head_dim * (text.num_heads + text.num_kv_heads) + 3 * text.intermediate_size
    )
    body, head = text.num_layers * layer_weights, text.vocab_size * text.hidden_size
    operations = 0
    if effort == "calibrated":
        operations = 2 * tokens * body
    elif effort == "best":
        positions = 2 * tokens + SENSITIVITY_TOKENS + _STREAMS * PROBE_TOKENS
        operations = 2 * positions * body + 2 * _ALL_STREAMS * PROBE_TOKENS * head
    # best tries types on samples, rounds each group on one thread, and sweeps
    encodings = {"fast": 1, "calibrated": 1, "best": 4}[effort]
    encoding = encodings * (body + head) / (_encoding_speed() * usable_threads())
    with bounded_matmul(text.hidden_size):
        matmuls = operations / _matrix_speed(multiply)
        others = _NEXT_TO_MATMULS * operations / _matrix_speed(np.matmul)
    return matmuls + others + encoding


def _matrix_speed(matmul: Callable[[FloatArray, FloatArray], object]) -> float:
    """Floating-point operations a second in matmuls like the decoder's."""
    x, weights = np.ones((2048, 1024), np.float32), np.ones((1024, 1024), np.float32)
    return 2 * x.size * len(weights) / _shortest(lambda: matmul(x, weights))


def _encoding_speed() -> float:
    """Weights a second on one thread, in the format that most tensors get."""
    weights = np.random.default_rng(0).standard_normal((256, 2048), np.float32)
    return weights.size / _shortest(lambda: encode(weights, GgmlType.Q4_K, np.ones(2048, np.float32)))


def _shortest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
