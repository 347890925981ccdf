"""On how many threads numpy multiplies matrices while a checkpoint is worked on."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.matmul_threads import bounded_matmul, matmul_threads

TINY_WIDTH, WIDTH_OF_8B = 256, 4096


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


pytestmark = pytest.mark.skipif(
    platform.system() == "Darwin", reason="numpy may multiply with Accelerate, which cannot be told"
)


@pytest.mark.parametrize(
    ("width", "threads", "expected"),
    [
        (TINY_WIDTH, None, 1),
        (TINY_WIDTH, 8, 1),
        (WIDTH_OF_8B, None, 4),
        (WIDTH_OF_8B, 3, 3),
        (WIDTH_OF_8B, 64, 4),
    ],
)
def test_wide_decoders_get_what_the_process_may_use(
    width: int, threads: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ayaedge_export.matmul_threads.usable_threads", lambda: 4)
    assert matmul_threads(width, threads) == expected


def test_a_bound_is_never_wider_than_what_the_program_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ayaedge_export.matmul_threads.usable_threads", lambda: 2)
    with threadpool_limits(2, user_api="blas"):
        with bounded_matmul(WIDTH_OF_8B):
            assert blas_threads() == {2}
        with bounded_matmul(WIDTH_OF_8B, 1), bounded_matmul(WIDTH_OF_8B):
            assert blas_threads() == {1}
        assert blas_threads() == {2}


def test_an_export_of_a_narrow_checkpoint_multiplies_on_one_thread(tiny: Path, tmp_path: Path) -> None:
    seen = []
    with threadpool_limits(2, user_api="blas"):
        export_checkpoint(tiny, tmp_path / "b", advance=lambda *_: seen.append(blas_threads()))
        assert blas_threads() == {2}
    assert seen
    assert all(threads == {1} for threads in seen)
