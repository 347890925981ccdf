"""Blocks taken apart and put together, against gguf's dequantizer and ggml's."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_quant import blocks as taken_apart
from ayaedge_quant import number_formats
from ayaedge_quant.blocks import CODES, SUPER_BLOCK, read_codes, read_grid, with_codes
from ayaedge_quant.number_formats import GgmlType

kinds = pytest.mark.parametrize("kind", list(CODES))


def any_blocks(kind: GgmlType, rows: int = 5, count: int = 3) -> NDArray[np.uint8]:
    """Every bit drawn, with factors that are finite."""
    rng = np.random.default_rng(int(kind))
    drawn = rng.integers(0, 256, (rows, count, kind.block_bytes), np.uint8)
    factors = rng.normal(0, 0.1, (rows, count, 2)).astype(np.float16).view(np.uint8)
    if kind is GgmlType.Q6_K:
        drawn[..., 208:210] = factors[..., :2]
    else:
        drawn[..., :4] = factors
    return drawn.reshape(rows, -1)


def some_codes(kind: GgmlType, shape: tuple[int, int]) -> NDArray[np.int8]:
    return np.random.default_rng(9).integers(CODES[kind].low, CODES[kind].high + 1, shape).astype(np.int8)


@kinds
def test_any_block_stands_for_what_both_dequantizers_say(kind: GgmlType) -> None:
    blocks = any_blocks(kind)
    ours = taken_apart.decode(blocks, kind)
    assert np.array_equal(ours, gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind.name]))
    np.testing.assert_allclose(ours, number_formats.decode(blocks, kind), rtol=1e-6, atol=1e-6)


@kinds
def test_blocks_that_were_encoded_stand_for_what_ggml_says(kind: GgmlType) -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (20, 512)).astype(np.float32)
    blocks = number_formats.encode(weights, kind)
    assert np.array_equal(taken_apart.decode(blocks, kind), number_formats.decode(blocks, kind))


@kinds
def test_grid_and_codes_have_one_entry_for_each_group_and_weight(kind: GgmlType) -> None:
    blocks = any_blocks(kind)
    columns = 3 * SUPER_BLOCK
    step, offset = read_grid(blocks, kind)
    assert step.shape == offset.shape == (5, columns // CODES[kind].group)
    codes = read_codes(blocks, kind)
    assert codes.shape == (5, columns)
    assert (codes.min(), codes.max()) == CODES[kind][1:]


@kinds
def test_the_same_codes_give_the_same_blocks(kind: GgmlType) -> None:
    blocks = any_blocks(kind)
    assert np.array_equal(with_codes(blocks, kind, read_codes(blocks, kind)), blocks)


@kinds
def test_other_codes_are_read_again_on_the_same_grid(kind: GgmlType) -> None:
    blocks = any_blocks(kind)
    before, codes = blocks.copy(), some_codes(kind, (5, 3 * SUPER_BLOCK))
    changed = with_codes(blocks, kind, codes)
    assert np.array_equal(read_codes(changed, kind), codes)
    for old, new in zip(read_grid(blocks, kind), read_grid(changed, kind), strict=True):
        assert np.array_equal(old, new)
    assert np.array_equal(blocks, before)


@kinds
def test_a_code_belongs_to_its_column(kind: GgmlType) -> None:
    blocks = any_blocks(kind, rows=1, count=2)
    codes = read_codes(blocks, kind)
    for column in range(0, 2 * SUPER_BLOCK, 37):
        other = codes.copy()
        other[0, column] = CODES[kind].low if codes[0, column] != CODES[kind].low else CODES[kind].high
        changed = taken_apart.decode(with_codes(blocks, kind, other), kind) != taken_apart.decode(
            blocks, kind
        )
        step = read_grid(blocks, kind).step[0, column // CODES[kind].group]
        assert np.flatnonzero(changed[0]).tolist() == ([column] if step else [])
