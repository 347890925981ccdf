"""Importance matrices changed by chance: one is read, or there is a sentence, at once and in little memory."""

from __future__ import annotations

import random
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ayaedge_quant.imatrix import ColumnSums, ImportanceMatrix, read_imatrix, write_imatrix
from gguf_mutations import CHANGES, Parts, changed_bytes, lay_out, take_apart

SLOWEST, MOST_BYTES = 5.0, 1 << 24
"""Seconds and bytes of one file, on a busy machine; these have a few kilobytes."""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    rng = np.random.default_rng(0)
    entries = {
        f"blk.{layer}.{name}.weight": ColumnSums(rng.random(96, np.float32), 40)
        for layer in range(3)
        for name in ("attn_q", "ffn_down")
    }
    path = tmp_path_factory.mktemp("matrix") / "m.gguf"
    write_imatrix(path, ImportanceMatrix(entries, ("a text", "another")))
    return path.read_bytes()


def changed(whole: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    parts = take_apart(whole)
    if seed % 5 == 0:
        return changed_bytes(whole, len(whole) - len(parts.data), rng)[0]
    if seed % 5 == 1:
        parts.data = with_odd_numbers(parts, rng)
    for change in rng.choices(CHANGES, k=rng.choice([1, 1, 2, 3])):
        change(parts, rng)
    if rng.random() < 0.5:
        lay_out(parts)
    return parts.file


def with_odd_numbers(parts: Parts, rng: random.Random) -> bytes:
    """The data with a sum or a count that none can be."""
    data = np.frombuffer(parts.data, np.float32).copy()
    _, _, _, offset = rng.choice(parts.tensors)
    data[offset // 4] = rng.choice([np.nan, np.inf, -np.inf, -1.0, 3e38, 0.0, 0.5, 1e-45])
    return data.tobytes()


def read_them(whole: bytes, path: Path, seeds: range) -> Counter[str]:
    found: Counter[str] = Counter()
    for seed in seeds:
        path.write_bytes(changed(whole, seed))
        started = time.process_time()
        tracemalloc.start()
        try:
            read = read_imatrix(path)
        except ValueError as error:  # the command line shows it as it is
            assert len(str(error)) < 2000, seed
            assert str(path) in str(error) or path.name in str(error), f"seed {seed}: {error}"
            found["refused"] += 1
        else:
            found["read"] += 1
            assert all(np.isfinite(one.mean_squares).all() for one in read.entries.values()), seed
            assert read.chunk_count >= 1, seed
            assert len(read.digest()) == 64, seed
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < MOST_BYTES, f"seed {seed}: {peak} bytes"
        assert time.process_time() - started < SLOWEST, f"seed {seed}"
    return found


def test_any_matrix_is_read_or_refused_in_a_sentence(matrix: bytes, tmp_path: Path) -> None:
    found = read_them(matrix, tmp_path / "m.gguf", range(400))
    assert min(found["read"], found["refused"]) > 20


@pytest.mark.slow
def test_so_are_ten_thousand(matrix: bytes, tmp_path: Path) -> None:
    read_them(matrix, tmp_path / "m.gguf", range(1000, 11_000))
