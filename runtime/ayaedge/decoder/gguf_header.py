"""Figures of a decoder.gguf, read from its header alone: shapes, and how many bytes each block has.

Neither weights nor vocabulary are loaded, and nothing is known here about where they will go: see `hardware.devices`.
The header is read by ggml's own functions. They abort the process when asked for a key in another type than it is
stored in, so the type is asked for first.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ayaedge import llama
from ayaedge.errors import BundleError, list_faults

_CONTEXT_STEP = 256
"""llama.cpp rounds the context size up to a multiple of this."""
_UNSIGNED, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
"""Of `gguf_type`: the types that a decoder's own keys have."""
_MOST_LAYERS = 1024
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
    with _opened(path) as header:
        reader = _Reader(header)
        figures = reader.figures()
    if reader.faults:
        raise BundleError(list_faults(str(path), reader.faults))
    return figures


class _Reader:
    """Looks keys up in an open header; what is missing or has another type is collected in `faults`."""

    def __init__(self, header: int) -> None:
        self._header, self._ggml = header, _ggml()
        self.faults: list[str] = []

    def figures(self) -> DecoderFigures:
        arch = self._text("general.architecture")
        layers, hidden = self._layers(arch), self._number(f"{arch}.embedding_length")
        heads = self._number(f"{arch}.attention.head_count")
        window = self._optional(f"{arch}.attention.sliding_window") or None
        blocks, other = self._weights(layers)
        return DecoderFigures(
            architecture=arch, layers=layers, hidden=hidden, heads=heads,
            kv_heads=self._optional(f"{arch}.attention.head_count_kv") or heads,
            head_dim=self._optional(f"{arch}.attention.key_length") or hidden // max(heads, 1),
            feed_forward=self._number(f"{arch}.feed_forward_length"),
            vocab_size=self._vocabulary(arch),
            window=window, window_pattern=self._pattern(arch, layers, sliding=window is not None),
            layer_bytes=blocks, other_bytes=other,
        )  # fmt: skip

    def _layers(self, arch: str) -> int:
        layers = self._number(f"{arch}.block_count")
        if layers <= _MOST_LAYERS:
            return layers
        self.faults.append(f"{arch}.block_count is {layers}, it must be at most {_MOST_LAYERS}")
        return 0

    def _text(self, key: str) -> str:
        index = self._find(key, _STRING)
        return (
            "" if index is None else self._ggml.gguf_get_val_str(self._header, index).decode(errors="replace")
        )

    def _number(self, key: str) -> int:
        index = self._find(key, _UNSIGNED)
        return 0 if index is None else int(self._ggml.gguf_get_val_u32(self._header, index))

    def _optional(self, key: str) -> int:
        """A number, or 0 if the file does not have it."""
        return self._number(key) if self._has(key) else 0

    def _has(self, key: str) -> bool:
        return bool(self._ggml.gguf_find_key(self._header, key.encode()) >= 0)

    def _type(self, key: str) -> int:
        return int(
            self._ggml.gguf_get_kv_type(self._header, self._ggml.gguf_find_key(self._header, key.encode()))
        )

    def _find(self, key: str, kind: int) -> int | None:
        if not self._has(key):
            self.faults.append(f"{key} is missing")
        elif self._type(key) != kind:
            self.faults.append(f"{key} has the wrong type")
        else:
            return int(self._ggml.gguf_find_key(self._header, key.encode()))
        return None

    def _vocabulary(self, arch: str) -> int:
        if self._has(f"{arch}.vocab_size"):
            return self._number(f"{arch}.vocab_size")
        index = self._find("tokenizer.ggml.tokens", _ARRAY)
        return 0 if index is None else int(self._ggml.gguf_get_arr_n(self._header, index))

    def _pattern(self, arch: str, layers: int, *, sliding: bool) -> tuple[bool, ...]:
        """The file names a flag for each block, or after how many blocks one does not slide."""
        key = f"{arch}.attention.sliding_window_pattern"
        if not sliding:
            return (False,) * layers
        if self._has(key) and self._type(key) == _ARRAY:
            return self._flags(key, layers)
        step = self._optional(key) or _DEFAULT_PATTERN
        return tuple(block % step < step - 1 for block in range(layers))

    def _flags(self, key: str, layers: int) -> tuple[bool, ...]:
        index = self._ggml.gguf_find_key(self._header, key.encode())
        count = self._ggml.gguf_get_arr_n(self._header, index)
        if self._ggml.gguf_get_arr_type(self._header, index) != _BOOL or count != layers:
            self.faults.append(f"{key} must hold a flag for each of {layers} blocks")
            return ()
        data = self._ggml.gguf_get_arr_data(self._header, index)
        return tuple(byte != 0 for byte in ctypes.string_at(data, count))

    def _weights(self, layers: int) -> tuple[tuple[int, ...], int]:
        """Bytes of each block's tensors, and of all others."""
        blocks, other = [0] * layers, 0
        for index in range(self._ggml.gguf_get_n_tensors(self._header)):
            name = self._ggml.gguf_get_tensor_name(self._header, index).decode(errors="replace")
            size = self._ggml.gguf_get_tensor_size(self._header, index)
            block = re.match(r"blk\.(\d+)\.", name)
            if block is None:
                other += size
            elif int(block[1]) < layers:
                blocks[int(block[1])] += size
            else:
                self.faults.append(f"{name} belongs to none of {layers} blocks")
        if 0 in blocks:
            self.faults.append(f"block {blocks.index(0)} has no weights")
        return tuple(blocks), other


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    ggml = _ggml()
    if not path.is_file():
        raise BundleError(f"{path} is missing")
    llama.forget_errors()
    header = ggml.gguf_init_from_file(os.fsencode(path), _InitParameters(no_alloc=True, context=None))
    if not header:
        raise BundleError(f"{path} cannot be read: {llama.recent_errors()}")
    try:
        yield header
    finally:
        ggml.gguf_free(header)


class _InitParameters(ctypes.Structure):
    """`gguf_init_params`: with no context to fill, the tensors' data is not touched."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


@cache
def _ggml() -> Any:
    handle, index, text, size = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p, ctypes.c_size_t
    return llama.native_library(
        "ggml-base",
        gguf_init_from_file=(handle, [text, _InitParameters]),
        gguf_free=(None, [handle]),
        gguf_find_key=(index, [handle, text]),
        gguf_get_kv_type=(ctypes.c_int, [handle, index]),
        gguf_get_val_u32=(ctypes.c_uint32, [handle, index]),
        gguf_get_val_str=(text, [handle, index]),
        gguf_get_arr_type=(ctypes.c_int, [handle, index]),
        gguf_get_arr_n=(size, [handle, index]),
        gguf_get_arr_data=(handle, [handle, index]),
        gguf_get_n_tensors=(index, [handle]),
        gguf_get_tensor_name=(text, [handle, index]),
        gguf_get_tensor_size=(size, [handle, index]),
    )
