"""Figures of a decoder.gguf, read from its header alone: shapes, and how many bytes each block has.

Neither weights nor vocabulary are loaded, and nothing is known here about where they will go: see `hardware.devices`.
Whether llama.cpp can do anything with the file is for `gguf_check` to say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayaedge.decoder.gguf_file import Header, read_header
from ayaedge.errors import BundleError, list_faults

_CONTEXT_STEP = 256
"""llama.cpp rounds the context size up to a multiple of this."""
MOST_LAYERS = 512
"""llama.cpp's."""
_DEFAULT_PATTERN = 4
"""llama.cpp's: of four blocks the last looks back over everything."""


@dataclass(frozen=True)
class DecoderFigures:
    """What decides about the memory that a decoder takes."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab_size: int
    window: int | None
    """Positions that the sliding blocks look back; None if all blocks look back over everything."""
    window_pattern: tuple[bool, ...]
    """Which blocks slide."""
    layer_bytes: tuple[int, ...]
    """Weights of each block."""
    other_bytes: int
    """Token embeddings, which are the output head too, and the last norm."""
    largest_bytes: int = 0
    """The largest matrix of a block; 0 if that is not known."""

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return sum(self.layer_bytes) + self.other_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of f16 keys and values of one position in all blocks."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    def kv_bytes(self, context: int, bytes_per_element: float = 2.0) -> int:
        """Bytes of the KV cache of all blocks for `context` positions.

        Sliding blocks count in full: the runtime keeps all their positions, so that a prefix can be cut back.
        """
        positions = -(-context // _CONTEXT_STEP) * _CONTEXT_STEP
        return round(positions * self.kv_bytes_per_token / 2 * bytes_per_element)


def read_figures(path: Path) -> DecoderFigures:
    """The figures of a GGUF file; BundleError if it cannot be read or does not describe a decoder."""
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    try:
        header = read_header(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    reader = _Figures(header)
    figures = reader.figures()
    if faults := header.faults + reader.faults:
        raise BundleError(list_faults(str(path), faults))
    return figures


class _Figures:
    """Looks keys up in a header; what is missing or has another type is collected in `faults`."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self.faults: list[str] = []

    def figures(self) -> DecoderFigures:
        arch = str(self._value("general.architecture", "string") or "")
        layers, hidden = self._layers(arch), self._number(f"{arch}.embedding_length")
        heads = self._number(f"{arch}.attention.head_count")
        window = self._optional(f"{arch}.attention.sliding_window") or None
        blocks, other, largest = self._weights(layers)
        return DecoderFigures(
            architecture=arch, layers=layers, hidden=hidden, heads=heads,
            kv_heads=self._optional(f"{arch}.attention.head_count_kv") or heads,
            head_dim=self._optional(f"{arch}.attention.key_length") or hidden // max(heads, 1),
            feed_forward=self._number(f"{arch}.feed_forward_length"),
            vocab_size=self._vocabulary(arch),
            window=window, window_pattern=self._pattern(arch, layers, sliding=window is not None),
            layer_bytes=blocks, other_bytes=other, largest_bytes=largest,
        )  # fmt: skip

    def _layers(self, arch: str) -> int:
        layers = self._number(f"{arch}.block_count")
        if layers <= MOST_LAYERS:
            return layers
        self.faults.append(f"{arch}.block_count is {layers}, it must be at most {MOST_LAYERS}")
        return 0

    def _number(self, key: str) -> int:
        return int(self._value(key, "uint32") or 0)

    def _optional(self, key: str) -> int:
        """A number, or 0 if the file does not have it."""
        return self._number(key) if key in self._header.values else 0

    def _value(self, key: str, kind: str) -> Any:
        found = self._header.values.get(key)
        if found is None:
            self.faults.append(f"{key} is missing")
        elif found.kind != kind:
            self.faults.append(f"{key} has the wrong type: {found.kind} instead of {kind}")
        else:
            return found.value
        return None

    def _vocabulary(self, arch: str) -> int:
        if f"{arch}.vocab_size" in self._header.values:
            return self._number(f"{arch}.vocab_size")
        tokens = self._value("tokenizer.ggml.tokens", "array of string")
        return 0 if tokens is None else len(tokens)

    def _pattern(self, arch: str, layers: int, *, sliding: bool) -> tuple[bool, ...]:
        """The file names a flag for each block, or after how many blocks one does not slide."""
        key = f"{arch}.attention.sliding_window_pattern"
        if not sliding:
            return (False,) * layers
        found = self._header.values.get(key)
        if found is not None and found.kind.startswith("array"):
            if found.kind != "array of bool" or len(found.value) != layers:
                self.faults.append(f"{key} must hold a flag for each of {layers} blocks")
                return ()
            return tuple(flag != 0 for flag in found.value.tolist())
        step = self._optional(key) or _DEFAULT_PATTERN
        return tuple(block % step < step - 1 for block in range(layers))

    def _weights(self, layers: int) -> tuple[tuple[int, ...], int, int]:
        """Bytes of each block's tensors, of all others, and of the largest of a block."""
        blocks, other, largest = [0] * layers, 0, 0
        for tensor in self._header.tensors:
            size = tensor.nbytes
            block = re.match(r"blk\.(\d{1,9})\.", tensor.name)
            if size is None:
                self.faults.append(f"{tensor.name} has a size or a type that is not known: {tensor.kind}")
            elif block is None:
                other += size
            elif int(block[1]) < layers:
                blocks[int(block[1])] += size
                largest = max(largest, size)
            else:
                self.faults.append(f"{tensor.name} belongs to none of {layers} blocks")
        if 0 in blocks:
            self.faults.append(f"block {blocks.index(0)} has no weights")
        return tuple(blocks), other, largest
