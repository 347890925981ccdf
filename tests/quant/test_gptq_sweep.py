"""The native column sweep against its numpy oracle, byte for byte, and what its blocks are worth."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ayaedge_quant import kernels, number_formats
from ayaedge_quant.blocks import CODES, levels, read_codes, read_grid
from ayaedge_quant.gptq_sweep import sweep
from ayaedge_quant.number_formats import GgmlType, encode

KINDS = list(CODES)
INSTRUCTIONS = range(-1, kernels.WIDEST + 1)

Blocks = NDArray[np.uint8]
FloatArray = NDArray[np.float32]


class Inputs(NamedTuple):
    """A layer's correlated inputs, as error feedback uses them."""

    covariance: NDArray[np.float64]
    feedback: FloatArray
    importance: FloatArray


@cache
def inputs(columns: int) -> Inputs:
    """Of few directions and very different sizes; feedback below the diagonal is not a number."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((columns // 4, columns)) * np.exp(rng.standard_normal(columns))
    covariance = directions.T @ directions / len(directions)
    covariance[np.diag_indices(columns)] += 0.01 * np.trace(covariance) / columns
    upper = np.linalg.cholesky(np.linalg.inv(covariance)).T
    feedback = np.ascontiguousarray(upper / np.diag(upper)[:, None], np.float32)
    feedback[np.tril_indices(columns)] = np.nan
    return Inputs(covariance, feedback, np.diag(covariance).astype(np.float32))


def weights(rows: int, columns: int, seed: int = 0) -> FloatArray:
    """Heavy tails, and rows of very different size."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(3, (rows, columns)) * np.exp(rng.standard_normal((rows, 1)))
    return (0.02 * drawn).astype(np.float32)


def shuffled(columns: int, seed: int = 0) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    starts = range(0, columns, 256)
    return np.concatenate([start + rng.permutation(256) for start in starts]).astype(np.int32)


def address_of_ggmls_encoder() -> int | None:
    return ctypes.cast(number_formats._library().ggml_quantize_chunk, ctypes.c_void_p).value


def native(
    x: FloatArray,
    kind: GgmlType,
    feedback: FloatArray,
    importance: FloatArray | None = None,
    **options: Any,
) -> Blocks:
    options.setdefault("stock_encoder", number_formats.stock_encoder(kind, weighted=importance is not None))
    return kernels.sweep(x, int(kind), kind.row_bytes(x.shape[1]), feedback, importance, **options)


def dequantized(blocks: Blocks, kind: GgmlType) -> FloatArray:
    return gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind.name])


def assert_all_give_the_oracles(
    x: FloatArray, kind: GgmlType, feedback: FloatArray, importance: FloatArray | None, **options: Any
) -> None:
    """Whatever instruction set is taken; an overflow of one is that of all."""
    try:
        with np.errstate(all="ignore"):
            expected = sweep(x, kind, feedback, importance, **options)
    except ValueError:
        for widest in INSTRUCTIONS:
            with pytest.raises(ValueError, match="corrected weight"):
                native(x, kind, feedback, importance, widest=widest, **options)
    else:
        for widest in INSTRUCTIONS:
            assert np.array_equal(native(x, kind, feedback, importance, widest=widest, **options), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (33, 768), (150, 512)])
def test_blocks_are_the_oracles(kind: GgmlType, weighted: bool, rows: int, columns: int) -> None:
    x, (_, feedback, drawn) = weights(rows, columns), inputs(columns)
    importance = drawn if weighted else None
    for grid in (None, encode(x, kind)):
        for order in (None, shuffled(columns)):
            assert_all_give_the_oracles(x, kind, feedback, importance, grid=grid, order=order)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 6).map(lambda blocks: 256 * blocks),
    kind=st.sampled_from(KINDS),
    weighted=st.booleans(),
    ordered=st.booleans(),
    given_grid=st.booleans(),
    strength=st.sampled_from([0, 0.01, 0.3]),  # the last lets corrected weights grow, until they overflow
    seed=st.integers(0, 2**16),
)
def test_blocks_of_any_shape_are_the_oracles(
    rows: int, columns: int, kind: GgmlType, weighted: bool, ordered: bool, given_grid: bool,
    strength: float, seed: int,
) -> None:  # fmt: skip
    x = weights(rows, columns, seed)
    rng = np.random.default_rng(seed)
    feedback = (strength * rng.standard_normal((columns, columns))).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(columns)).astype(np.float32) if weighted else None
    order = shuffled(columns, seed) if ordered else None
    grid = encode(x, kind) if given_grid else None
    assert_all_give_the_oracles(x, kind, feedback, importance, order=order, grid=grid)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_odd_values_are_the_oracles(kind: GgmlType) -> None:
    x = weights(21, 512)
    x[0] = 0
    x[1] = -0.0
    x[2] = 0.3
    x[3], x[4] = np.abs(x[3]), -np.abs(x[4])
    x[5, ::3] = 0
    x[6] *= 1e-20  # below what counts as zeros
    x[7] *= 1e-41  # denormal
    x[8] *= 1e3
    x[9, :32] *= 1e4  # scales of the other groups round to zero
    x[10, 32:48] = 0
    x[11] = np.sign(x[11])
    x[12, 7] = 6e4
    _, feedback, importance = inputs(512)
    no_steps = np.zeros((21, kind.row_bytes(512)), np.uint8)
    for far in (feedback, np.zeros_like(feedback)):
        for grid in (None, encode(x, kind), no_steps):
            for weigh in (None, importance, np.zeros(512, np.float32)):
                assert_all_give_the_oracles(x, kind, far, weigh, grid=grid)


@pytest.mark.parametrize("kind", KINDS)
def test_ggmls_encoder_can_search_the_grid(kind: GgmlType) -> None:
    x, (_, feedback, importance) = weights(37, 512), inputs(512)
    for weigh in (None, importance):
        blocks = native(x, kind, feedback, weigh, stock_encoder=address_of_ggmls_encoder())
        assert np.array_equal(blocks, sweep(x, kind, feedback, weigh))


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_valid_and_stand_for_step_times_level_less_offset(kind: GgmlType) -> None:
    x, (_, feedback, importance) = weights(64, 1024), inputs(1024)
    blocks = native(x, kind, feedback, importance)
    base = ctypes.CDLL(str(number_formats.library_path()))
    base.ggml_validate_row_data.restype = ctypes.c_bool
    base.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    assert base.ggml_validate_row_data(int(kind), blocks.ctypes.data, blocks.nbytes)
    step, offset = (np.repeat(part, CODES[kind].group, axis=1) for part in read_grid(blocks, kind))
    assert np.array_equal(dequantized(blocks, kind), step * levels(read_codes(blocks, kind), kind) - offset)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_of_the_product_is_far_below_the_plain_encoders(kind: GgmlType) -> None:
    x, (covariance, feedback, importance) = weights(64, 1024), inputs(1024)

    def error(blocks: Blocks) -> float:
        missed = (dequantized(blocks, kind) - x).astype(np.float64)
        return float(np.einsum("ri,ij,rj->", missed, covariance, missed, optimize=True))

    assert error(native(x, kind, feedback, importance)) < 0.6 * error(encode(x, kind, importance))


@pytest.mark.parametrize("refit", [True, False])
def test_spans_of_a_matrix_are_swept_where_they_are(refit: bool) -> None:
    kind, x = GgmlType.Q4_K, weights(50, 768)
    plain = encode(x, kind)
    swept = plain.copy()
    whole = inputs(768).feedback
    for start, stop in ((0, 256), (256, 768)):
        part, there = x[:, start:stop], slice(kind.row_bytes(start), kind.row_bytes(stop))
        feedback, grid = whole[start:stop, start:stop], None if refit else plain[:, there]
        filled = native(part, kind, feedback, grid=grid, out=swept[:, there])
        assert np.shares_memory(filled, swept)
        single = native(part.copy(), kind, feedback.copy(), grid=grid)
        assert np.array_equal(swept[:, there], single)
    assert not np.array_equal(swept, plain)


@pytest.mark.parametrize("threads", [2, 3, 16])
def test_the_number_of_threads_does_not_matter(threads: int) -> None:
    x, (_, feedback, importance) = weights(700, 512), inputs(512)
    one = native(x, GgmlType.Q5_K, feedback, importance, threads=1)
    assert np.array_equal(native(x, GgmlType.Q5_K, feedback, importance, threads=threads), one)


def test_nothing_is_swept_into_nothing() -> None:
    feedback = inputs(256).feedback
    assert native(np.zeros((0, 256), np.float32), GgmlType.Q6_K, feedback).shape == (0, 210)
    assert native(np.zeros((3, 0), np.float32), GgmlType.Q6_K, feedback[:0, :0]).shape == (3, 0)


def test_weights_and_grid_stay_as_they_are() -> None:
    kind, x = GgmlType.Q6_K, weights(20, 256)
    grid = encode(x, kind)
    kept = x.copy(), grid.copy()
    native(x, kind, inputs(256).feedback, grid=grid)
    assert np.array_equal(x, kept[0])
    assert np.array_equal(grid, kept[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"feedback": np.zeros((256, 512), np.float32)}, r"feedback must be float32 of shape \(512, 512\)"),
        ({"feedback": np.zeros((512, 512))}, "feedback must be float32 .* not float64"),
        ({"feedback": np.zeros((512, 512), np.float32).T}, "rows of the feedback must each lie in one piece"),
        ({"weights": np.zeros((512, 4), np.float32).T}, "rows of the weights must each lie in one piece"),
        ({"importance": np.zeros(256, np.float32)}, r"importance must be float32 of shape \(512,\)"),
        ({"order": np.arange(512)}, "order must be int32 .* not int64"),
        ({"order": np.roll(np.arange(512, dtype=np.int32), 1)}, "leaves a super-block or is no permutation"),
        ({"order": np.zeros(512, np.int32)}, "leaves a super-block or is no permutation"),
        ({"grid": np.zeros((4, 144), np.uint8)}, r"grid must be uint8 of shape \(4, 288\)"),
        ({"out": np.zeros((3, 288), np.uint8)}, r"blocks must be uint8 of shape \(4, 288\)"),
        ({"row_bytes": 144}, "512 columns of type 12 are not 144 bytes of whole blocks"),
        ({"kind": 8}, "512 columns of type 8 are not 288 bytes of whole blocks"),
        ({"weights": np.full((4, 512), np.nan, np.float32)}, "not finite or too large"),
        ({"weights": np.full((4, 512), 1e5, np.float32)}, "not finite or too large"),
        ({"kind": 23, "row_bytes": 272}, "refused a sweep"),  # for which ggml must search
        ({"threads": -1}, "refused a sweep with -1 threads"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    given_values: dict[str, Any] = {
        "weights": np.ones((4, 512), np.float32), "kind": 12, "row_bytes": 288,
        "feedback": np.zeros((512, 512), np.float32),
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        kernels.sweep(**given_values | changed)
