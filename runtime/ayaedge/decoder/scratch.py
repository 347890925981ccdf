"""Work space that llama.cpp takes on a GPU as it goes. It says so nowhere, and ends the process where there is none.

Sizes are bounds, from what its Vulkan backend takes: activations as 16-bit floats, parts of sums, a quantized KV
cache as 16-bit floats. What there is room for is tried right before, by taking as much and giving it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ayaedge import llama
from ayaedge.decoder.gguf_header import DecoderFigures, read_figures
from ayaedge.decoder.options import FLOAT_TYPES, DecoderOptions
from ayaedge.errors import OutOfMemoryError
from ayaedge.hardware.devices import Gpu, has_room

_LEAST = 16 << 20
"""Bytes that backends take for however small a batch."""
_HALF = 2
"""Bytes of a 16-bit float."""
_PARTS = 3 * 4
"""Bytes of sums of 32-bit floats that are computed in three parts; where there are more, matrices are small."""
_STEP = 256
"""Positions of the KV cache that llama.cpp looks at come in multiples of this."""
_FLASH_ROWS = 64
"""From so many rows on its flash attention unpacks a quantized KV cache."""


def scratch_bytes(figures: DecoderFigures, options: DecoderOptions, rows: int, positions: int) -> int:
    """Most that a batch of `rows` tokens takes, with `positions` of the KV cache before and within it."""
    activations = rows * max(figures.feed_forward, figures.hidden) * (_HALF + _PARTS)
    unpacked = _HALF * figures.kv_heads * figures.head_dim * -(-positions // _STEP) * _STEP
    packed = options.cache_type not in FLOAT_TYPES and options.value_type not in FLOAT_TYPES
    copies = 2 if packed and rows >= _FLASH_ROWS else 0
    if not options.uses_flash:
        copies = 1  # of keys or of values, so that heads follow each other
    return _LEAST + activations + copies * unpacked


@dataclass
class Scratch:
    """What one context has been found room for."""

    path: Path
    """Of the decoder's file."""
    options: DecoderOptions
    gpus: Sequence[Gpu]
    """Those that its context uses."""
    rows: int = 0
    positions: int = 0
    """Most of both, so far."""

    def afresh(self) -> Scratch:
        """That of another context, which has taken nothing yet."""
        return Scratch(self.path, self.options, self.gpus)

    def checked(self, context: Any, parameters: Any) -> Any:
        """A new llama_context with room for its largest batch; without it is freed, and OutOfMemoryError raised."""
        try:
            self.require(parameters.n_ubatch, parameters.n_ctx)
        except OutOfMemoryError:
            llama.library().llama_free(context)
            raise
        return context

    @cached_property
    def _figures(self) -> DecoderFigures:
        return read_figures(self.path)

    def require(self, rows: int, positions: int) -> None:
        """Raise OutOfMemoryError unless there is room for a batch like this, as far as it is larger than all before."""
        if not self.gpus or (rows <= self.rows and positions <= self.positions):
            return
        figures, most = self._figures, (max(rows, self.rows), max(positions, self.positions))
        size = scratch_bytes(figures, self.options, *most)
        if self.rows:
            size -= scratch_bytes(figures, self.options, self.rows, self.positions)
        if size and not has_room(self.gpus, size):
            raise OutOfMemoryError(
                f"no {max(size >> 20, 1)} MiB of graphics memory are left to work in: use fewer layers there, or close "
                "other programs"
            )
        self.rows, self.positions = most
