"""The kernel for AMX, over tiles that are emulated, where the processor has the rest of its instructions (AVX-512)."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import prefill_twin as twin
from ayaedge.hardware.machine import processor
from prefill_twin import KINDS, ROUNDING, TINY, largest_weights, random_weights

FLAGS = (
    "-std=c++17 -O2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -fno-math-errno -ffp-contract=off "
    "-shared -fPIC -pthread"
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++") or "avx512bw" not in processor().features,
    reason="the kernel for AMX needs Linux, a compiler and AVX-512",
)


class Emulated:
    """The kernel, compiled anew; `fault` is what a processor would not have done."""

    def __init__(self, directory: Path):
        path = directory / "emulated_amx.so"
        source = Path(__file__).with_name("emulated_amx.cpp")
        subprocess.run(["g++", *FLAGS.split(), str(source), "-o", str(path)], check=True)
        self.library = ctypes.CDLL(str(path))
        self.library.fault.restype = ctypes.c_char_p
        self.library.misuse.restype = ctypes.c_bool
        self.library.peak.restype, self.library.peak.argtypes = ctypes.c_int64, [ctypes.c_int64]

    def fault(self) -> str:
        """The first since it was asked for; empty if there is none."""
        return (self.library.fault() or b"").decode()

    def product(
        self, weights: NDArray[np.uint8], kind: int, x: NDArray[np.float32], threads: int = 1
    ) -> NDArray[np.float32]:
        """As `acceleration.product`."""
        (columns, depth), rows = x.shape, len(weights)
        out = np.full((columns, rows), 7, np.float32)
        size, pointer = ctypes.c_int64, ctypes.c_void_p
        status = self.library.product(
            kind, pointer(weights.ctypes.data), size(rows), size(depth), pointer(x.ctypes.data), size(columns),
            pointer(out.ctypes.data), threads,
        )  # fmt: skip
        assert status == 0
        assert self.fault() == ""
        return out


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulated:
    return Emulated(tmp_path_factory.mktemp("amx"))


def assert_is_the_twins(
    emulated: Emulated, weights: NDArray[np.uint8], kind: int, x: NDArray[np.float32], threads: int = 1
) -> None:
    expected, magnitude = twin.product_bf16(weights, kind, x)
    found = emulated.product(weights, kind, x, threads)
    assert (np.abs(found - expected) <= ROUNDING * magnitude + TINY * x.shape[1]).all()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(KINDS), st.integers(1, 10), st.integers(1, 9), st.integers(1, 70), st.integers(1, 3),
    st.integers(0, 2**32 - 1), st.integers(-38, 25),
)  # fmt: skip
def test_products_of_every_shape_and_size_are_the_twins(
    emulated: Emulated,
    kind: int,
    panels: int,
    blocks: int,
    columns: int,
    threads: int,
    seed: int,
    exponent: int,
) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((columns, 256 * blocks)) * 10.0**exponent).astype(np.float32)
    x[:, :: rng.integers(2, 99)] *= 12
    x[rng.integers(columns), :256] = rng.choice([0.0, 1e-42])
    assert_is_the_twins(emulated, random_weights(rng, kind, 32 * panels, 256 * blocks), kind, x, threads)


@pytest.mark.parametrize("kind", KINDS)
def test_each_weight_and_each_activation_is_rounded_to_the_nearest(emulated: Emulated, kind: int) -> None:
    """One activation of 1 in each column picks out a weight, one weight of 1 an activation."""
    rng = np.random.default_rng(0)
    weights = random_weights(rng, kind, 32, 256)
    first, second = twin.dequantize(weights, kind)
    found = emulated.product(weights, kind, np.eye(256, dtype=np.float32))
    assert np.array_equal(found.T, twin.to_bf16(first - second))
    for picked in rng.integers(0, 256, 9):
        x = np.zeros((16, 256), np.float32)
        x[:, picked] = rng.uniform(1, 2, 16)
        x[:3, picked] = (1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8)  # halfway
        expected = twin.to_bf16(x[:, [picked]]) * twin.to_bf16((first - second)[:, picked])
        assert np.array_equal(emulated.product(weights, kind, x), expected.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_that_of_bf16(emulated: Emulated, kind: int) -> None:
    rng = np.random.default_rng(0)
    weights = random_weights(rng, kind, 64, 2048)
    x = rng.standard_normal((48, 2048)).astype(np.float32)
    x[:, rng.integers(0, 2048, 32)] *= 12
    first, second = twin.dequantize(weights, kind)
    exact = x.astype(np.float64) @ (first - second).T
    error = np.linalg.norm(emulated.product(weights, kind, x) - exact) / np.linalg.norm(exact)
    assert 0.0015 < error < 0.003


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_codes_do_not_overflow(emulated: Emulated, kind: int) -> None:
    x = np.ones((7, 512), np.float32)
    x[:, ::3] = -1
    assert_is_the_twins(emulated, largest_weights(kind, 32, 512), kind, x)


@pytest.mark.parametrize("kind", KINDS)
def test_more_columns_than_are_computed_at_once_are_right_and_threads_change_no_bit(
    emulated: Emulated, kind: int
) -> None:
    rng = np.random.default_rng(0)
    weights = random_weights(rng, kind, 32, 256)
    x = rng.standard_normal((515, 256)).astype(np.float32)
    found = [emulated.product(weights, kind, x, threads) for threads in (1, 2, 7)]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[0][510:], emulated.product(weights, kind, x[510:]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, 0xFFFFFFFF])
def test_what_is_not_finite_spoils_its_column_or_row_alone(emulated: Emulated, kind: int, odd: float) -> None:
    rng = np.random.default_rng(0)
    weights, x = random_weights(rng, kind, 32, 512), rng.standard_normal((9, 512)).astype(np.float32)
    x[4, 300] = odd if abs(odd) != 0xFFFFFFFF else np.array([0xFFFFFFFF], np.uint32).view(np.float32)[0]
    scale = slice(0, 2) if kind == twin.Q4_K else slice(208, 210)
    weights.reshape(32, 2, -1)[7, 1, scale] = np.array([0x7FFF], np.uint16).view(np.uint8)  # a NaN of ones
    found = emulated.product(weights, kind, x)
    assert np.isnan(found[4]).all()
    assert np.isnan(found[:, 7]).all()
    assert np.isfinite(np.delete(np.delete(found, 4, axis=0), 7, axis=1)).all()


def test_the_loop_of_instructions_alone_counts_them(emulated: Emulated) -> None:
    assert emulated.library.peak(3) == 3 * 4 * 2 * 16 * 16 * 32
    assert emulated.fault() == ""


def test_the_emulated_tiles_notice_what_a_processor_does_not_do(emulated: Emulated) -> None:
    faults = []
    while emulated.library.misuse(len(faults)):
        faults.append(emulated.fault())
    no_configuration, no_fit = "a configuration that does not exist", "a product of tiles that do not fit"
    assert faults == [
        "a tile before it was configured", *[no_configuration] * 6, "a tile without rows", *[no_fit] * 4,
        "a product of a tile with itself", *["a row in two lines of the cache"] * 2,
    ]  # fmt: skip
