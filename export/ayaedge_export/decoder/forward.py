"""The decoder in numpy: the readable twin of llama.cpp's Cohere graphs, for collecting statistics.

Many sequences go through it together, layer by layer, so that every weight is read once and at most one matrix
is in memory. It knows nothing of files, of number formats or of what is done with the inputs that it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.checkpoint.config import TextConfig
from ayaedge_quant.matmul import multiply

FloatArray = NDArray[np.float32]
Observe = Callable[[str, int, FloatArray], None]
"""Called with a linear's name (without `.weight`), a column, and inputs (positions, some columns) from that column on.

A linear's columns come in order, all positions at once; the positions of the sequences follow one another.
"""

EMBEDDINGS = "language_model.model.embed_tokens"
_FINAL_NORM = "language_model.model.norm"
PART = 1024
"""Rows of a weight that are multiplied at a time, which bounds the memory for converted weights and results."""
_QUERIES = 512
"""Positions whose attention is computed at a time, which bounds the memory for scores."""


class DecoderWeights(Protocol):
    """Tensors by their names on the hub."""

    def read(self, name: str) -> FloatArray:
        """A whole tensor."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` (exclusive)."""
        ...


class Linears(Protocol):
    """The matmuls of the decoder's linears, which names without `.weight` stand for."""

    def rows(self, name: str, start: int, stop: int, x: FloatArray) -> FloatArray:
        """Outputs `start` to `stop` of x (n, in): (n, stop - start). Parts of a linear come in order."""
        ...

    def columns(self, name: str, start: int, stop: int, x: FloatArray) -> FloatArray:
        """What inputs `start` to `stop`, x (n, stop - start), give to all outputs: (n, out). In order too."""
        ...


def decoder_forward(
    config: TextConfig,
    weights: DecoderWeights,
    sequences: Sequence[FloatArray],
    observe: Observe | None = None,
    *,
    advance: Callable[[int], None] | None = None,
) -> FloatArray:
    """Embeddings of sequences (n_i, hidden) to final hidden states (sum of n_i, hidden), which the head takes.

    `observe` sees the input of every linear, the tied head's under the name of the embeddings. `advance` is called
    with 1 when a layer is done. Peak memory is about 5 arrays of (sum of n_i, hidden), and one matrix.
    """
    observe = observe or ignore
    x = np.concatenate(sequences).astype(np.float32, copy=False)
    lengths = [len(sequence) for sequence in sequences]
    linears = StoredLinears(weights)
    for layer in range(config.num_layers):
        add_layer(x, lengths, config, layer, weights, linears, observe)
        if advance:
            advance(1)
    final = final_norm(config, weights, x)
    observe(EMBEDDINGS, 0, final)
    return final


def add_layer(
    x: FloatArray,
    lengths: Sequence[int],
    config: TextConfig,
    layer: int,
    weights: DecoderWeights,
    linears: Linears,
    observe: Observe,
    *,
    part: int | None = None,
) -> None:
    """Take the residual stream x (sum of lengths, hidden) of some sequences through a layer, in place.

    Attention and MLP both start from the same normed x. Inner columns of the MLP come `part` at a time,
    1024 by default.
    """
    prefix = f"language_model.model.layers.{layer}"
    normed = layer_norm(x, weights.read(f"{prefix}.input_layernorm.weight"), config.layer_norm_eps)
    _add_attention(x, normed, lengths, config, layer, weights, linears, observe)
    _add_mlp(x, normed, prefix, config.intermediate_size, linears, observe, part or PART)


def final_norm(config: TextConfig, weights: DecoderWeights, x: FloatArray) -> FloatArray:
    """What the head takes, (n, hidden), for the residual stream behind the last layer."""
    return layer_norm(x, weights.read(f"{_FINAL_NORM}.weight"), config.layer_norm_eps)


class StoredLinears:
    """`Linears` with the weights as they are."""

    def __init__(self, weights: DecoderWeights):
        self._weights = weights
        self._wide: tuple[str, FloatArray] | None = None

    def rows(self, name: str, start: int, stop: int, x: FloatArray) -> FloatArray:
        """See `Linears.rows`."""
        return multiply(x, self._weights.read_rows(f"{name}.weight", start, stop).T)

    def columns(self, name: str, start: int, stop: int, x: FloatArray) -> FloatArray:
        """See `Linears.columns`."""
        return multiply(x, self.matrix(name)[:, start:stop].T)

    def matrix(self, name: str) -> FloatArray:
        """A whole weight (out, in), which is kept until another one is wanted."""
        if self._wide is None or self._wide[0] != name:
            self._wide = None  # two do not need to be in memory
            self._wide = name, self._weights.read(f"{name}.weight")
        return self._wide[1]


def ignore(_name: str, _column: int, _x: FloatArray) -> None:
    """What watches when nobody does."""


def head_logits(config: TextConfig, weights: DecoderWeights, hidden: FloatArray) -> FloatArray:
    """Final hidden states (n, hidden) to logits (n, vocabulary): logit_scale * E h, E being the embeddings."""
    logits = _linear(StoredLinears(weights), EMBEDDINGS, hidden, config.vocab_size)
    logits *= np.float32(config.logit_scale)
    return logits


def layer_norm(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
    """Normalise the last axis and scale it by `weight`; Cohere's norms have no bias."""
    centred: FloatArray = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    centred /= np.sqrt(variance + np.float32(eps))
    centred *= weight
    return centred


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[FloatArray, FloatArray]:
    """Cosine and sine of positions 0 to `length` - 1 for each pair of channels, (length, head_dim / 2) each."""
    frequencies: FloatArray = 1.0 / np.float32(theta) ** (
        np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    )
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    return np.cos(angles), np.sin(angles)


def rotate(x: FloatArray, cosine: FloatArray, sine: FloatArray) -> FloatArray:
    """Rotate adjacent channels (2i, 2i + 1) of x (heads, n, head_dim) by the angles (n, head_dim / 2)."""
    even, odd = x[..., ::2], x[..., 1::2]
    rotated = np.empty_like(x)
    rotated[..., ::2] = even * cosine - odd * sine
    rotated[..., 1::2] = odd * cosine + even * sine
    return rotated


def attend(query: FloatArray, key: FloatArray, value: FloatArray, window: int | None) -> FloatArray:
    """Causal attention: queries (heads, n, d), keys and values (key heads, n, d), result (heads, n, d).

    Each key head serves heads / key heads queries in a row. A position sees itself and, with a window, the
    `window` - 1 positions before it.
    """
    heads, length, width = query.shape
    grouped = query.reshape(len(key), -1, length, width) * np.float32(width**-0.5)
    mixed = np.empty_like(grouped)
    for start in range(0, length, _QUERIES):
        stop = min(start + _QUERIES, length)
        first = 0 if window is None else max(0, start - window + 1)
        hidden = _hidden_keys(np.arange(start, stop), np.arange(first, stop), window)
        for head in range(len(key)):
            # (group, queries, d) x (d, keys) -> (group, queries, keys)
            scores = grouped[head, :, start:stop] @ key[head, first:stop].T
            np.copyto(scores, -np.inf, where=hidden)  # `scores[:, hidden] =` takes five times as long
            scores -= scores.max(-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(-1, keepdims=True)
            mixed[head, :, start:stop] = scores @ value[head, first:stop]
    return mixed.reshape(heads, length, width)


def _hidden_keys(queries: NDArray[np.intp], keys: NDArray[np.intp], window: int | None) -> NDArray[np.bool_]:
    """Which keys each query does not see, (queries, keys)."""
    distance = queries[:, None] - keys[None, :]
    hidden = distance < 0
    return hidden if window is None else hidden | (distance >= window)


def _add_attention(
    x: FloatArray,
    normed: FloatArray,
    lengths: Sequence[int],
    config: TextConfig,
    layer: int,
    weights: DecoderWeights,
    linears: Linears,
    observe: Observe,
) -> None:
    """Add the attention of `layer` over the normed positions to x, in place."""
    prefix = f"language_model.model.layers.{layer}.self_attn"
    sliding = bool(config.layer_is_sliding) and config.layer_is_sliding[layer]
    parts = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads, "v_proj": config.num_kv_heads}
    projected = []
    for name, heads in parts.items():
        observe(f"{prefix}.{name}", 0, normed)
        projected.append(_linear(linears, f"{prefix}.{name}", normed, heads * config.head_dim))
    query, key, value = projected
    if config.use_qk_norm:
        query = _norm_heads(query, weights.read(f"{prefix}.q_norm.weight"), config.layer_norm_eps)
        key = _norm_heads(key, weights.read(f"{prefix}.k_norm.weight"), config.layer_norm_eps)
    rotates = sliding or config.model_type == "cohere"
    cosine, sine = rotary_tables(max(lengths), config.head_dim, config.rope_theta)
    for start, stop in _spans(lengths):
        q, k, v = (_heads(part[start:stop], config.head_dim) for part in (query, key, value))
        if rotates:
            q, k = (rotate(part, cosine[: stop - start], sine[: stop - start]) for part in (q, k))
        mixed = attend(q, k, v, config.sliding_window if sliding else None)
        query[start:stop] = mixed.transpose(1, 0, 2).reshape(stop - start, -1)  # done with these queries
    observe(f"{prefix}.o_proj", 0, query)
    for start, stop in _parts(x.shape[1], PART):
        x[:, start:stop] += linears.rows(f"{prefix}.o_proj", start, stop, query)


def _add_mlp(
    x: FloatArray,
    normed: FloatArray,
    prefix: str,
    width: int,
    linears: Linears,
    observe: Observe,
    part: int,
) -> None:
    """Add down(silu(gate) * up) of the normed positions to x, in place, a part of the inner columns at a time."""
    gate, up, down = (f"{prefix}.mlp.{name}_proj" for name in ("gate", "up", "down"))
    observe(gate, 0, normed)
    observe(up, 0, normed)
    for start, stop in _parts(width, part):
        inner = silu(linears.rows(gate, start, stop, normed))
        inner *= linears.rows(up, start, stop, normed)
        observe(down, start, inner)
        x += linears.columns(down, start, stop, inner)


def silu(x: FloatArray) -> FloatArray:
    """The activation x * sigmoid(x), written so that nothing overflows."""
    gate = np.float32(0.5) * x
    np.tanh(gate, out=gate)  # in place: new memory for each step costs as much as the arithmetic
    gate += 1
    gate *= np.float32(0.5)
    gate *= x
    return np.asarray(gate)


def _linear(linears: Linears, name: str, x: FloatArray, outputs: int) -> FloatArray:
    """Apply x W^T for x (n, in); result (n, outputs)."""
    result = np.empty((len(x), outputs), np.float32)
    for start, stop in _parts(outputs, PART):
        result[:, start:stop] = linears.rows(name, start, stop, x)
    return result


def _parts(count: int, step: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _heads(x: FloatArray, head_dim: int) -> FloatArray:
    """From (n, heads * head_dim) to (heads, n, head_dim)."""
    return x.reshape(len(x), -1, head_dim).transpose(1, 0, 2)


def _norm_heads(x: FloatArray, weight: FloatArray, eps: float) -> FloatArray:
    """Normalise every head of x (n, heads * d) alone; `weight` is (heads, d)."""
    return layer_norm(x.reshape(len(x), *weight.shape), weight, eps).reshape(x.shape)


def _spans(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for length in lengths:
        yield start, start + length
        start += length
