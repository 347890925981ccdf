"""What the prefill kernels compute, in numpy: it reads like the formula."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUPER_BLOCK = 256
Q4_K, Q6_K = 12, 14
BLOCK_BYTES = {Q4_K: 144, Q6_K: 210}


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
