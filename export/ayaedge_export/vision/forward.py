"""The vision tower and the connector in numpy: the readable twin of the ONNX graph.

Used for two things: collecting activation statistics at export, one layer's weights in memory at a time,
and checking the graphs. It knows nothing of files, of ONNX or of number formats; a caller who wants to
watch or to replace the matmuls passes his own `linear`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.checkpoint.config import VisionConfig
from ayaedge_export.checkpoint.spec import CONNECTOR, TOWER, layer_prefix
from ayaedge_export.checkpoint.tensors import WeightSource
from ayaedge_quant.matmul import multiply

FloatArray = NDArray[np.float32]
LinearFunction = Callable[[str, FloatArray], FloatArray]
"""(name without `.weight`, input (..., in)) to output (..., out)."""


def vision_forward(
    config: VisionConfig, weights: WeightSource, pixels: FloatArray, linear: LinearFunction | None = None
) -> FloatArray:
    """Tiles (n, 3, S, S) to image embeddings (n, T, output_size): tower, pixel shuffle, connector."""
    linear = linear or plain_linear(weights)
    return connect(config, weights, encode(config, weights, pixels, linear), linear)


def encode(
    config: VisionConfig, weights: WeightSource, pixels: FloatArray, linear: LinearFunction
) -> FloatArray:
    """Tiles (n, 3, S, S) to features (n, patches, hidden), without `post_layernorm`, which is not used."""
    x = embed_patches(config, weights, pixels)
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        normed = layer_norm(x, weights, f"{prefix}.layer_norm1", config.layer_norm_eps)
        x = x + attend(config, normed, f"{prefix}.self_attn", linear)
        normed = layer_norm(x, weights, f"{prefix}.layer_norm2", config.layer_norm_eps)
        x = x + linear(f"{prefix}.mlp.fc2", gelu_tanh(linear(f"{prefix}.mlp.fc1", normed)))
    return x


def connect(
    config: VisionConfig, weights: WeightSource, features: FloatArray, linear: LinearFunction
) -> FloatArray:
    """Features (n, patches, hidden) to image embeddings (n, T, output_size)."""
    normed = connector_input(config, weights, features)
    value, gate = np.split(linear(f"{CONNECTOR}.linear_1", normed), 2, axis=-1)
    return linear(f"{CONNECTOR}.linear_2", value * gate / (1 + np.exp(-gate)))


def connector_input(config: VisionConfig, weights: WeightSource, features: FloatArray) -> FloatArray:
    """What the connector's first linear sees: shuffled, normalised features (n, T, hidden * downsample^2)."""
    shuffled = pixel_shuffle(features, config)
    return layer_norm(shuffled, weights, f"{CONNECTOR}.layernorm", config.adapter_layer_norm_eps)


def plain_linear(weights: WeightSource) -> LinearFunction:
    """Linears in float32, x W^T + b."""

    def apply(name: str, x: FloatArray) -> FloatArray:
        return multiply(x, weights(f"{name}.weight").T) + weights(f"{name}.bias")

    return apply


def embed_patches(config: VisionConfig, weights: WeightSource, pixels: FloatArray) -> FloatArray:
    """Tiles (n, 3, S, S) to patch embeddings with positions (n, patches, hidden).

    Patches stand row by row; pixels that do not fill a patch at the right and lower edge are left out.
    """
    side, patch = config.patches_per_side, config.patch_size
    kernel = weights(f"{TOWER}.embeddings.patch_embedding.weight").reshape(config.hidden_size, -1)
    covered = pixels[:, :, : side * patch, : side * patch]
    # (n, 3, rows, p, cols, p) -> (n, rows, cols, 3, p, p) -> (n, patches, 3 * p * p)
    grid = covered.reshape(-1, 3, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
    x = grid.reshape(len(pixels), side * side, -1) @ kernel.T
    x += weights(f"{TOWER}.embeddings.patch_embedding.bias")
    return np.asarray(x + weights(f"{TOWER}.embeddings.position_embedding.weight"))


def attend(config: VisionConfig, x: FloatArray, prefix: str, linear: LinearFunction) -> FloatArray:
    """Multi-head attention without mask, (n, patches, hidden) to the same, one tile at a time."""

    def heads(name: str) -> FloatArray:
        # (n, patches, hidden) -> (n, heads, patches, head_dim)
        y = linear(f"{prefix}.{name}", x)
        return y.reshape(*y.shape[:2], config.num_heads, -1).transpose(0, 2, 1, 3)

    query, key, value = heads("q_proj"), heads("k_proj"), heads("v_proj")
    query = query * np.float32(query.shape[-1] ** -0.5)
    mixed = np.empty_like(x)
    for tile in range(len(x)):
        scores = softmax(query[tile] @ key[tile].transpose(0, 2, 1))
        # (heads, patches, head_dim) -> (patches, hidden)
        mixed[tile] = (scores @ value[tile]).transpose(1, 0, 2).reshape(x.shape[1:])
    return linear(f"{prefix}.out_proj", mixed)


def pixel_shuffle(features: FloatArray, config: VisionConfig) -> FloatArray:
    """Join squares of patches: (n, patches, hidden) to (n, T, hidden * f^2), channels in reading order.

    Source: `AyaVisionMultiModalProjector.pixel_shuffle` of transformers, written as one transposition.
    """
    factor, side, hidden = config.downsample_factor, config.tokens_per_side, config.hidden_size
    # (n, rows, f, cols, f, hidden) -> (n, rows, cols, f, f, hidden) -> (n, T, f * f * hidden)
    grid = features.reshape(-1, side, factor, side, factor, hidden).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(-1, side * side, factor * factor * hidden)


def layer_norm(x: FloatArray, weights: WeightSource, name: str, eps: float) -> FloatArray:
    """Normalise the last axis, then apply the weight and bias of the norm `name`."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    normed = centred / np.sqrt(variance + np.float32(eps))
    return np.asarray(normed * weights(f"{name}.weight") + weights(f"{name}.bias"))


def softmax(scores: FloatArray) -> FloatArray:
    """Over the last axis."""
    exponents: FloatArray = scores - scores.max(-1, keepdims=True)
    np.exp(exponents, out=exponents)
    exponents /= exponents.sum(-1, keepdims=True)
    return exponents


def gelu_tanh(x: FloatArray) -> FloatArray:
    """GELU with the tanh approximation (Hendrycks and Gimpel 2016), the activation of SigLIP."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)))
