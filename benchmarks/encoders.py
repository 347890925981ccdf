"""How fast our block encoders are beside ggml's own, on one thread: `python benchmarks/encoders.py`.

Weights of one slab, with heavy tails; each pair is timed alternately and the best of three counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from ayaedge_quant import kernels
from ayaedge_quant.number_formats import GgmlType, stock_encode

ROWS, COLUMNS, ROUNDS = 256, 4096, 3
INSTRUCTIONS = ("portable", "AVX2", "AVX-512")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    rng = np.random.default_rng(0)
    weights = (0.02 * rng.standard_t(4, (ROWS, COLUMNS))).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(COLUMNS)).astype(np.float32)
    print(
        f"| type | importance | ggml, M weights/s | {' | '.join(f'{name}, times' for name in INSTRUCTIONS)} |"
    )
    print("|---" * (3 + len(INSTRUCTIONS)) + "|")
    for kind in (GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K):
        for columns in (None, importance):
            work = [lambda kind=kind, columns=columns: stock_encode(weights, kind, columns)]
            work += [
                lambda kind=kind, columns=columns, widest=widest: kernels.encode(
                    weights, int(kind), kind.row_bytes(COLUMNS), columns, widest=widest
                )
                for widest in range(len(INSTRUCTIONS))
            ]
            stock, *ours = np.min([[seconds(one) for one in work] for _ in range(ROUNDS)], axis=0)
            figures = " | ".join(f"{stock / one:.1f}" for one in ours)
            weighted = "no" if columns is None else "yes"
            print(f"| {kind.name} | {weighted} | {weights.size / stock / 1e6:.1f} | {figures} |")


if __name__ == "__main__":
    main()
