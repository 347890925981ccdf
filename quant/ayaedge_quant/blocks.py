"""The K-quants' and IQ4_XS's blocks taken apart and put together: grids of representable values, and codes on them.

A super-block of 256 weights has groups of 32 (Q4_K, Q5_K, IQ4_XS) or 16 (Q6_K); a group's weights are
step * level - offset. The level is the code itself, but for IQ4_XS one of 16 uneven ones.
Layouts are those of ggml-common.h in llama.cpp.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant.number_formats import GgmlType

SUPER_BLOCK = 256
"""Weights of a block of all these types."""

Blocks = NDArray[np.uint8]
"""Rows of whole blocks, (rows, row_bytes)."""


class Codes(NamedTuple):
    """What codes a type has."""

    group: int
    """Weights that share step and offset."""
    low: int
    high: int


CODES = {
    GgmlType.Q4_K: Codes(32, 0, 15),
    GgmlType.Q5_K: Codes(32, 0, 31),
    GgmlType.Q6_K: Codes(16, -32, 31),
    GgmlType.IQ4_XS: Codes(32, 0, 15),
}
"""The types that GPTQ can write."""


_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)  # kvalues_iq4nl
_MIDDLES = (_LEVELS[1:] + _LEVELS[:-1]) / 2


def nearest_codes(wanted: NDArray[np.float32], kind: GgmlType) -> NDArray[np.int8]:
    """The codes whose levels are nearest; between two, the even code, or of IQ4_XS the lower one."""
    if kind is GgmlType.IQ4_XS:
        return np.asarray(np.sum(wanted[..., None] > _MIDDLES, axis=-1, dtype=np.int8))
    return np.rint(np.clip(wanted, CODES[kind].low, CODES[kind].high)).astype(np.int8)


def levels(codes: NDArray[np.int8], kind: GgmlType) -> NDArray[np.float32]:
    """What codes stand for on a grid of step 1 and offset 0."""
    return _LEVELS[codes] if kind is GgmlType.IQ4_XS else codes.astype(np.float32)


class Grid(NamedTuple):
    """The values that each group can take: step * level - offset, both (rows, groups)."""

    step: NDArray[np.float32]
    offset: NDArray[np.float32]


def read_grid(blocks: Blocks, kind: GgmlType) -> Grid:
    """The grid of every group, in the arithmetic of ggml's dequantizers."""
    parts = blocks.reshape(len(blocks), -1, kind.block_bytes)
    if kind is GgmlType.Q6_K:
        scales = parts[..., 192:208].view(np.int8).astype(np.float32)
        step = parts[..., 208:210].view(np.float16).astype(np.float32) * scales
        return Grid(step.reshape(len(blocks), -1), np.zeros((len(blocks), step[0].size), np.float32))
    if kind is GgmlType.IQ4_XS:
        pairs, quads = parts[..., 4:8, None], parts[..., 2:4, None]
        low = (pairs >> np.array([0, 4], np.uint8) & 15).reshape(*parts.shape[:2], 8)
        high = (quads >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(*parts.shape[:2], 8)
        scales = (low | high << 4).astype(np.float32) - 32
        step = parts[..., :2].view(np.float16).astype(np.float32) * scales
        return Grid(step.reshape(len(blocks), -1), np.zeros((len(blocks), step[0].size), np.float32))
    factors = parts[..., :4].view(np.float16).astype(np.float32)
    packed = parts[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = np.concatenate([first & 63, third & 15 | first >> 6 << 4], -1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], -1)
    step, offset = factors[..., :1] * scales, factors[..., 1:] * minima
    return Grid(step.reshape(len(blocks), -1), offset.reshape(len(blocks), -1))


def read_codes(blocks: Blocks, kind: GgmlType) -> NDArray[np.int8]:
    """The code of every weight, (rows, columns)."""
    rows = len(blocks)
    parts = blocks.reshape(rows, -1, kind.block_bytes)
    if kind is GgmlType.Q6_K:
        low = parts[..., :128].reshape(rows, -1, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
        high = parts[..., 128:192].reshape(rows, -1, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
        codes = low.reshape(rows, -1, 2, 128) | high.reshape(rows, -1, 2, 128) << 4
        return codes.reshape(rows, -1).astype(np.int8) - np.int8(32)
    if kind is GgmlType.IQ4_XS:
        halves = parts[..., 8:].reshape(rows, -1, 8, 1, 16) >> np.array([[0], [4]], np.uint8) & 15
        return halves.reshape(rows, -1).astype(np.int8)
    nibbles = parts[..., -128:].reshape(rows, -1, 4, 1, 32) >> np.array([[0], [4]], np.uint8) & 15
    codes = nibbles.reshape(rows, -1, 8, 32)
    if kind is GgmlType.Q5_K:
        codes = codes | (parts[..., 16:48][:, :, None] >> np.arange(8, dtype=np.uint8)[:, None] & 1) << 4
    return codes.reshape(rows, -1).astype(np.int8)


def with_codes(blocks: Blocks, kind: GgmlType, codes: NDArray[np.int8]) -> Blocks:
    """Copy `blocks` with other codes (rows, columns) on the same grid."""
    result = blocks.copy()
    parts = result.reshape(len(blocks), -1, kind.block_bytes)
    if kind is GgmlType.Q6_K:
        stored = (codes + np.int8(32)).view(np.uint8).reshape(*parts.shape[:2], 2, 4, 32)
        low = stored & 15
        parts[..., :128] = (low[..., :2, :] | low[..., 2:, :] << 4).reshape(*parts.shape[:2], 128)
        shifted = stored >> 4 << np.array([[0], [2], [4], [6]], np.uint8)
        parts[..., 128:192] = np.bitwise_or.reduce(shifted, axis=-2).reshape(*parts.shape[:2], 64)
        return result
    if kind is GgmlType.IQ4_XS:
        stored = codes.view(np.uint8).reshape(*parts.shape[:2], 8, 2, 16)
        parts[..., 8:] = (stored[..., 0, :] | stored[..., 1, :] << 4).reshape(*parts.shape[:2], 128)
        return result
    stored = codes.view(np.uint8).reshape(*parts.shape[:2], 4, 2, 32)
    parts[..., -128:] = (stored[..., 0, :] & 15 | stored[..., 1, :] << 4).reshape(*parts.shape[:2], 128)
    if kind is GgmlType.Q5_K:
        fifth = stored.reshape(*parts.shape[:2], 8, 32) >> 4 << np.arange(8, dtype=np.uint8)[:, None]
        parts[..., 16:48] = np.bitwise_or.reduce(fifth, axis=-2)
    return result


def decode(blocks: Blocks, kind: GgmlType) -> NDArray[np.float32]:
    """The weights (rows, columns) that blocks of one of `CODES` stand for."""
    group = CODES[kind].group
    step, offset = (np.repeat(part, group, axis=1) for part in read_grid(blocks, kind))
    return step * levels(read_codes(blocks, kind), kind) - offset
