"""A GGUF file from anybody is an importance matrix, or is refused in bounded time and memory."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ayaedge_quant.imatrix import ImportanceMatrix, read_imatrix

HUGE = 1 << 40
TEXT, LIST, NUMBER, REAL = 8, 9, 4, 6


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name.encode()) + struct.pack("<I", kind) + value


def info(name: str, size: int, offset: int, kind: int = 0) -> bytes:
    return text(name.encode()) + struct.pack("<IQIQ", 1, size, kind, offset)


KEYS = {
    "general.type": key("general.type", TEXT, text(b"imatrix")),
    "imatrix.datasets": key("imatrix.datasets", LIST, struct.pack("<IQ", TEXT, 1) + text(b"a")),
    "imatrix.chunk_count": key("imatrix.chunk_count", NUMBER, struct.pack("<I", 1)),
    "imatrix.chunk_size": key("imatrix.chunk_size", NUMBER, struct.pack("<I", 512)),
}
TENSORS = (info("q.in_sum2", 4, 0), info("q.counts", 1, 32))
DATA = np.array([1, 2, 3, 4, 0, 0, 0, 0, 9], np.float32).tobytes()


def gguf(
    keys: dict[str, bytes] | None = None,
    tensors: tuple[bytes, ...] = TENSORS,
    data: bytes = DATA,
    counts: tuple[int, int] | None = None,
    version: int = 3,
) -> bytes:
    values = KEYS | (keys or {})
    tensor_count, value_count = counts or (len(tensors), len(values))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, value_count)
    head += b"".join((*values.values(), *tensors))
    return head + bytes(-len(head) % 32) + data


def read(path: Path, content: bytes) -> ImportanceMatrix:
    (path / "m.gguf").write_bytes(content)
    return read_imatrix(path / "m.gguf")


def test_a_file_of_these_parts_is_a_matrix(tmp_path: Path) -> None:
    entry = read(tmp_path, gguf()).entries["q"]
    assert (entry.sums.tolist(), entry.positions) == ([1, 2, 3, 4], 9)


HOSTILE = {
    "2 ** 40 elements": gguf(tensors=(info("q.in_sum2", HUGE, 0), TENSORS[1])),
    "sizes whose product wraps around": gguf(
        tensors=(text(b"q.in_sum2") + struct.pack("<IQQIQ", 2, 1 << 62, 4, 0, 0), TENSORS[1])
    ),
    "an offset of 2 ** 63": gguf(tensors=(info("q.in_sum2", 4, 1 << 63), TENSORS[1])),
    "2 ** 40 tensors": gguf(counts=(HUGE, 4)),
    "2 ** 64 - 1 keys": gguf(counts=(2, (1 << 64) - 1)),
    "2 ** 32 - 1 axes": gguf(tensors=(text(b"q.in_sum2") + struct.pack("<I", (1 << 32) - 1),)),
    "a list of 2 ** 40 numbers": gguf({"x": key("x", LIST, struct.pack("<IQ", NUMBER, HUGE))}),
    "a list of 2 ** 40 texts": gguf({"x": key("x", LIST, struct.pack("<IQ", TEXT, HUGE))}),
    "lists in lists": gguf({"x": key("x", LIST, struct.pack("<IQ", LIST, 1) * 100_000)}),
    "a text of 2 ** 63 bytes": gguf({"x": key("x", TEXT, struct.pack("<Q", 1 << 63))}),
    "a text that is none": gguf({"x": key("x", TEXT, text(b"\xff"))}),
    "a type that is none": gguf({"x": key("x", 99, b"")}),
    "a key twice": gguf({"x": KEYS["general.type"]}),
    "a tensor twice": gguf(tensors=(TENSORS[0], TENSORS[0])),
    "an alignment of 0": gguf({"a": key("general.alignment", NUMBER, struct.pack("<I", 0))}),
    "an alignment that is real": gguf({"a": key("general.alignment", REAL, struct.pack("<f", 32))}),
    "an alignment that is a list": gguf({"a": key("general.alignment", LIST, struct.pack("<IQ", NUMBER, 0))}),
    "a kind that is a list": gguf(
        {"general.type": key("general.type", LIST, struct.pack("<IQI", NUMBER, 1, 1))}
    ),
    "data sets that are a number": gguf({"imatrix.datasets": key("imatrix.datasets", NUMBER, bytes(4))}),
    "no tokens in a chunk": gguf({"imatrix.chunk_size": key("imatrix.chunk_size", NUMBER, bytes(4))}),
    "a chunk that is a text": gguf({"imatrix.chunk_size": key("imatrix.chunk_size", TEXT, text(b"x"))}),
    "a count that is not a number": gguf(data=DATA[:32] + struct.pack("<f", float("nan"))),
    "a count without end": gguf(data=DATA[:32] + struct.pack("<f", float("inf"))),
    "a negative count": gguf(data=DATA[:32] + struct.pack("<f", -1)),
    "another version": gguf(version=77),
    "the magic alone": b"GGUF",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_a_matrix_is_refused_at_once(tmp_path: Path, name: str) -> None:
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"m\.gguf") as caught:
            read(tmp_path, HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_matrix_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="it is not a regular file"):
        read_imatrix(tmp_path / "m.gguf")
