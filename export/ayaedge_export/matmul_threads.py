"""On how many threads numpy multiplies matrices while a checkpoint is worked on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController

from ayaedge.hardware.machine import usable_threads

_WIDE = 1024
"""Hidden sizes from which two threads are faster than one, as far as no other process takes a processor away."""


def matmul_threads(width: int, threads: int | None = None) -> int:
    """One for a decoder of a small `width` (hidden size), else `threads`, at most and by default all that are usable.

    The threads of a BLAS wait for each other without sleeping. Where another process has one of their processors,
    each wait lasts as long as the system lets that one run, some milliseconds: more than a narrow decoder's matmuls.
    """
    return min(threads or usable_threads(), usable_threads()) if width >= _WIDE else 1


@contextmanager
def bounded_matmul(width: int, threads: int | None = None) -> Iterator[None]:
    """Keep numpy's BLAS, in the whole process, to `matmul_threads` or the fewer that it is kept to already.

    macOS's Accelerate cannot be told.
    """
    libraries = ThreadpoolController().select(user_api="blas")
    now = [library["num_threads"] for library in libraries.info()]
    with libraries.limit(limits=min([matmul_threads(width, threads), *now])):
        yield
