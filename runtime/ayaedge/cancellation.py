"""A flag that ends work which another thread waits for, readable from C."""

from __future__ import annotations

import ctypes

from ayaedge.errors import CancelledError


class Cancellation:
    """A flag that llama.cpp can read too, without Python: the first byte of `buffer` is 0 until it is set."""

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(2)

    def set(self) -> None:
        """Ask for an end."""
        self.buffer[0] = b"\x01"

    @property
    def is_set(self) -> bool:
        """Whether an end was asked for."""
        return bool(self.buffer[0] != b"\x00")

    def check(self) -> None:
        """Raise CancelledError if an end was asked for."""
        if self.is_set:
            raise CancelledError
