"""How fast the column sweep is beside numpy and torch: `python benchmarks/sweep.py`, a few minutes on two cores.

Shapes of one ffn_down tensor (4096, 14336) to Q4_K: spans of 1024 columns, the default route, with grids that are
searched on the corrected columns and with grids that are given; spans of 256; one of 2048; and all columns as one span,
which the native sweep alone does unless `--all` is given. Each span is swept by all in turn, on two threads where they
have any, and medians count. The torch form holds columns in rows, which is half as fast again as the usual layout, and
searches with ggml's encoder on both threads; numpy's is the oracle, on every eighth span only.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ayaedge_quant import kernels
from ayaedge_quant.blocks import CODES, SUPER_BLOCK, read_grid, with_codes
from ayaedge_quant.gptq_sweep import LAZY, sweep
from ayaedge_quant.number_formats import GgmlType, stock_encode

ROWS, COLUMNS, THREADS, KIND = 4096, 14336, 2, GgmlType.Q4_K

FloatArray = NDArray[np.float32]
Blocks = NDArray[np.uint8]
Sweep = Callable[[FloatArray, FloatArray, FloatArray, "Blocks | None"], Blocks]


def native_sweep(
    weights: FloatArray, feedback: FloatArray, importance: FloatArray, grid: Blocks | None
) -> Blocks:
    row_bytes = KIND.row_bytes(weights.shape[1])
    return kernels.sweep(weights, int(KIND), row_bytes, feedback, importance, grid=grid, threads=THREADS)


def numpy_sweep(
    weights: FloatArray, feedback: FloatArray, importance: FloatArray, grid: Blocks | None
) -> Blocks:
    return sweep(weights, KIND, feedback, importance, grid=grid)


def search(weights: FloatArray, importance: FloatArray) -> Blocks:
    """Blocks by ggml's encoder, half of the rows on each thread."""
    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(lambda rows: stock_encode(rows, KIND, importance), np.array_split(weights, THREADS))
        return np.concatenate(list(parts))


def torch_sweep(
    weights: FloatArray, feedback: FloatArray, importance: FloatArray, grid: Blocks | None
) -> Blocks:
    """The same loop: rank-1 updates within a lazy block, one product for the columns behind it."""
    import torch

    torch.set_num_threads(THREADS)
    group, low, high = CODES[KIND]
    rows, columns = weights.shape
    left, take = torch.from_numpy(weights).T.contiguous(), torch.from_numpy(feedback)
    chosen = torch.empty((columns, rows), dtype=torch.int8)
    blocks = np.empty((rows, KIND.row_bytes(columns)), np.uint8) if grid is None else grid
    for start in range(0, columns, LAZY):
        stop = start + LAZY
        if start % SUPER_BLOCK == 0:
            here = slice(start, start + SUPER_BLOCK)
            there = slice(KIND.row_bytes(start), KIND.row_bytes(here.stop))
            if grid is None:
                blocks[:, there] = search(left[here].T.contiguous().numpy(), importance[here])
            scales = read_grid(np.ascontiguousarray(blocks[:, there]), KIND)
            step, offset = (torch.from_numpy(part).T.contiguous() for part in scales)
        near = left[start:stop]
        errors = torch.empty_like(near)
        for i in range(LAZY):
            part = (start + i) % SUPER_BLOCK // group
            code = ((near[i] + offset[part]) / step[part]).nan_to_num_(0, 0, 0).round_().clamp_(low, high)
            chosen[start + i] = code
            errors[i] = near[i] - (step[part] * code - offset[part])
            near[i + 1 :].addr_(take[start + i, start + i + 1 : stop], errors[i], alpha=-1)
        left[stop:].addmm_(take[start:stop, stop:].T, errors, alpha=-1)
    return with_codes(blocks, KIND, chosen.T.contiguous().numpy())


def seconds(one: Sweep, given: tuple[FloatArray, ...], grid: Blocks | None = None) -> tuple[float, Blocks]:
    started = time.perf_counter()
    blocks = one(*given, grid)
    return time.perf_counter() - started, blocks


def drawn(columns: int, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Weights with heavy tails; feedback and importance of no particular inputs. Made in slabs to stay small."""
    rng = np.random.default_rng(seed)
    weights, feedback = np.empty((ROWS, columns), np.float32), np.empty((columns, columns), np.float32)
    for slab in np.array_split(weights, ROWS // 256):
        slab[...] = 0.02 * rng.standard_t(4, slab.shape)
    for row in feedback:
        rng.standard_normal(dtype=np.float32, out=row)
        row *= 0.01
    return weights, feedback, np.exp(2 * rng.standard_normal(columns)).astype(np.float32)


def compare(columns: int, spans: int, rounds: int, is_given: bool) -> list[float]:
    """Seconds for all spans: native, numpy, torch."""
    took: list[list[float]] = [[], [], []]
    for number in range(spans * rounds):
        given = drawn(columns, number)
        grid = native_sweep(*given, None) if is_given else None
        elapsed, blocks = seconds(native_sweep, given, grid)
        took[0].append(elapsed)
        if number % 8 == 0:
            elapsed, expected = seconds(numpy_sweep, given, grid)
            took[1].append(elapsed)
            assert np.array_equal(blocks, expected)
        elapsed, similar = seconds(torch_sweep, given, grid)
        took[2].append(elapsed)
        assert (blocks == similar).mean() > 0.95  # its products are summed in another order
    return [spans * float(np.median(one)) for one in took]


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="torch sweeps the full width too")
    options = parser.parse_args()
    given = drawn(COLUMNS, 0)
    full, _ = seconds(native_sweep, given)
    peak = peak_megabytes()  # before anything else is loaded
    full_torch = f"{seconds(torch_sweep, given)[0]:.0f}" if options.all else "–"
    del given
    gc.collect()
    print(
        f"| {ROWS} rows, {KIND.name}, {THREADS} threads | native, s | numpy, s | times | torch, s | times |"
    )
    print("|---|---|---|---|---|---|")
    cases = [
        ("14 spans of 1024", 1024, 14, 1, False),
        ("the same, grids given", 1024, 14, 1, True),
        ("56 spans of 256", 256, 56, 1, False),
        ("one span of 2048", 2048, 1, 5, False),
    ]
    for name, *case in cases:
        ours, oracle, torch = compare(*case)
        figures = f"{ours:.2f} | {oracle:.1f} | {oracle / ours:.0f} | {torch:.2f} | {torch / ours:.1f}"
        print(f"| {name} | {figures} |", flush=True)
    print(f"| one span of {COLUMNS}; {peak:.0f} MB | {full:.1f} | – | – | {full_torch} | – |")


if __name__ == "__main__":
    main()
