"""What the prefill kernels compute, in numpy: it reads like the formula. And weights for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUPER_BLOCK = 256
Q4_K, Q6_K = 12, 14
BLOCK_BYTES = {Q4_K: 144, Q6_K: 210}
KINDS = (Q4_K, Q6_K)
ROUNDING = 3e-6
"""Of sums in single precision, as a part of the magnitudes of their terms."""
TINY = 2.0**-126
"""What is smaller is zero for AMX."""


def random_weights(rng: np.random.Generator, kind: int, rows: int, depth: int) -> NDArray[np.uint8]:
    """Any bytes; scales are halves of every size, denormal and negative ones too, but finite."""
    blocks = rng.integers(0, 256, (rows, depth // 256, BLOCK_BYTES[kind]), np.uint8)
    place = slice(0, 4) if kind == Q4_K else slice(208, 210)
    halves = np.ascontiguousarray(blocks[..., place]).view(np.uint16)
    halves &= np.uint16(0xBFFF)  # less than 2
    blocks[..., place] = halves.view(np.uint8)
    return blocks.reshape(rows, -1)


def largest_weights(kind: int, rows: int, depth: int) -> NDArray[np.uint8]:
    """The largest codes and scales that there are: sums of 16 bits must hold them."""
    blocks = np.full((rows, depth // 256, BLOCK_BYTES[kind]), 255, np.uint8)
    if kind == Q4_K:
        blocks[..., :4] = np.array([1.0, 0.0], np.float16).view(np.uint8)
    else:
        blocks[..., 192:208] = 128  # -128
        blocks[..., 208:] = np.array([1.0], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def quantize(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Activations (columns, depth) as bytes of that shape and factors (depth / 256, columns).

    The largest of 256 becomes 127. Where one is not finite the factor is NaN; what is smaller than 2^-120 is nothing.
    """
    blocks = x.reshape(len(x), -1, SUPER_BLOCK)
    with np.errstate(all="ignore"):
        most = np.abs(blocks).max(-1)
        inverse = np.float32(127) / np.where(most == 0, np.float32(1), most)
        nothing = (most == 0) | (inverse > np.float32(3.4e38))
        infinite = ~np.isfinite(most)
        factors = np.where(infinite, np.float32(np.nan), np.where(nothing, 0, most / np.float32(127)))
        codes = np.rint(blocks * inverse[..., None])
    codes[nothing | infinite] = 0
    return codes.astype(np.int8).reshape(x.shape), factors.astype(np.float32).T


def dequantize(weights: NDArray[np.uint8], kind: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both parts of weights (rows, row_bytes), whose difference they are: (rows, depth) each."""
    blocks = weights.reshape(len(weights), -1, BLOCK_BYTES[kind])
    first, second = (_q4_k if kind == Q4_K else _q6_k)(blocks)
    return first.reshape(len(weights), -1), second.reshape(len(weights), -1)


def product(
    weights: NDArray[np.uint8], kind: int, x: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The product with quantized activations, (columns, rows), and the sum of the magnitudes of its terms."""
    codes, factors = quantize(x)
    columns = codes * np.repeat(factors.T.astype(np.float64), SUPER_BLOCK, axis=1)
    first, second = dequantize(weights, kind)
    return columns @ (first - second).T, np.abs(columns) @ (np.abs(first) + np.abs(second)).T


def to_bf16(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest numbers with 8 bits of precision, by way of single precision, ties to even.

    Those below 2^-126 become zero, and where one is not finite, NaN.
    """
    with np.errstate(over="ignore"):
        bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    found = rounded.view(np.float32).astype(np.float64)
    found[np.abs(found) < 2.0**-126] = 0
    found[~np.isfinite(values)] = np.nan
    return found


def product_bf16(
    weights: NDArray[np.uint8], kind: int, x: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The product of activations and weights as bf16, (columns, rows), and the sum of its terms' magnitudes."""
    first, second = dequantize(weights, kind)
    columns, rows = to_bf16(x.astype(np.float64)), to_bf16(first - second)
    return columns @ rows.T, np.abs(columns) @ np.abs(rows).T


def attention(
    q: NDArray[np.float32],
    k: NDArray[np.float16],
    v: NDArray[np.float16],
    mask: NDArray[np.float16] | None,
    scale: float,
) -> NDArray[np.float64]:
    """Queries (tokens, heads, depth) over (keys, kv_heads, depth), which groups of heads share; 0 if none is seen."""
    shared = q.shape[1] // k.shape[1]
    keys, values = (np.repeat(a.astype(np.float64), shared, axis=1) for a in (k, v))
    scores = scale * np.einsum("thd,khd->htk", q.astype(np.float64), keys)
    if mask is not None:
        scores += mask.astype(np.float64)
    most = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(most == -np.inf, 0, most))
    total = weights.sum(-1, keepdims=True)
    return np.einsum("htk,khd->thd", weights / np.where(total == 0, 1, total), values)


def _half(pair: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.ascontiguousarray(pair).view(np.float16).astype(np.float64)


def _q4_k(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    d, least, packed = _half(blocks[..., 0:2]), _half(blocks[..., 2:4]), blocks[..., 4:16]
    scale, minimum = np.empty((*blocks.shape[:2], 8)), np.empty((*blocks.shape[:2], 8))
    scale[..., :4], minimum[..., :4] = packed[..., :4] & 63, packed[..., 4:8] & 63
    scale[..., 4:] = packed[..., 8:] & 15 | packed[..., :4] >> 6 << 4
    minimum[..., 4:] = packed[..., 8:] >> 4 | packed[..., 4:8] >> 6 << 4
    nibbles = blocks[..., 16:].reshape(*blocks.shape[:2], 4, 1, 32)
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=3).reshape(*blocks.shape[:2], 8, 32)
    return (d * scale)[..., None] * q, np.broadcast_to((least * minimum)[..., None], q.shape)


def _q6_k(blocks: NDArray[np.uint8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    outer = blocks.shape[:2]
    low = blocks[..., :128].reshape(*outer, 2, 1, 64)
    high = blocks[..., 128:192].reshape(*outer, 2, 1, 32)
    nibbles = np.concatenate([low & 15, low >> 4], axis=3).reshape(*outer, 2, 4, 32)
    pairs = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=3)
    q = (nibbles | pairs << 4).reshape(*outer, 16, 16)
    scale = _half(blocks[..., 208:210]) * blocks[..., 192:208].view(np.int8)
    return scale[..., None] * q, 32 * np.broadcast_to(scale[..., None], q.shape)
