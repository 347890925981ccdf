"""KV states: what a llama.cpp context holds, copied out as bytes and put back behind what it holds.

Functions over the handle of a context. Position 0 of sequence 0 is where a prompt begins; a second sequence serves to
copy a part of it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import FLOAT_TYPES, DecoderOptions
from ayaedge.errors import BackendError, InvalidOptionError

_CACHE_BLOCK = 32
"""Values of a head that share a block in the quantized formats of a KV cache."""
_STATE_HEADER = 8
"""Bytes before the caches in a state: a mark and the sequence's number."""
_SLIDING_ONLY = 1
"""LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: of the sliding layers' cache."""
SCRATCH = 1
"""Number of a second sequence, in which a part of the first one is copied to and from states."""


def tail_bytes(context: Any, start: int) -> int:
    """The size of `read_tail`, without a copy."""
    library = llama.library()
    memory = library.llama_get_memory(context)
    library.llama_memory_seq_cp(memory, 0, SCRATCH, start, -1)
    size = int(library.llama_state_seq_get_size(context, SCRATCH))
    library.llama_memory_seq_rm(memory, SCRATCH, -1, -1)
    return size


def read_tail(context: Any, start: int) -> NDArray[np.uint8]:
    """What the context holds from position `start` on, for `append_tail`; errors as `read_state`."""
    library = llama.library()
    memory = library.llama_get_memory(context)
    library.llama_memory_seq_cp(memory, 0, SCRATCH, start, -1)
    try:
        return read_state(context, SCRATCH)
    finally:
        library.llama_memory_seq_rm(memory, SCRATCH, -1, -1)


def append_tail(context: Any, state: NDArray[np.uint8], position: int, count: int) -> bool:
    """Put a tail behind `position`, which takes that to `count`; False, with a context to be cleared, if it misfits."""
    library = llama.library()
    memory = library.llama_get_memory(context)
    read = write_state(context, state, SCRATCH)
    first = library.llama_memory_seq_pos_min(memory, SCRATCH)
    last = library.llama_memory_seq_pos_max(memory, SCRATCH)
    if read != state.nbytes or (first, last) != (position, count - 1):
        return False
    library.llama_memory_seq_cp(memory, SCRATCH, 0, -1, -1)
    library.llama_memory_seq_rm(memory, SCRATCH, -1, -1)
    return True


def read_state(context: Any, sequence: int = 0) -> NDArray[np.uint8]:
    """Everything that a sequence holds; BackendError if llama.cpp gives less than it announced."""
    library = llama.library()
    state = np.empty(library.llama_state_seq_get_size(context, sequence), np.uint8)
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    written = library.llama_state_seq_get_data(context, pointer, state.nbytes, sequence)
    if written != state.nbytes:
        raise BackendError(f"llama.cpp gave {written} bytes of its state instead of {state.nbytes}")
    return state


def write_state(context: Any, state: NDArray[np.uint8], sequence: int = 0) -> int:
    """Replace what a sequence holds; returns the bytes that llama.cpp has read of the state."""
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    return int(llama.library().llama_state_seq_set_data(context, pointer, state.nbytes, sequence))


def spread_state(context: Any, state: NDArray[np.uint8], streams: int) -> NDArray[np.uint8] | None:
    """A state of sequence 0 for a context that has a cache of its own for each of `streams` sequences.

    llama.cpp's states say for each cache (one for the sliding layers, one for the others) how many streams it has, and
    for each stream what it holds. Those of `context`, whose sequences share one stream, become those of as many
    streams, of which all but the first are empty; where the first goes is decided by the sequence that it is read
    into. None if the state is not as expected.
    """
    whole = len(state) - _STATE_HEADER
    sliding = int(llama.library().llama_state_seq_get_size_ext(context, 0, _SLIDING_ONLY)) - _STATE_HEADER
    start = _STATE_HEADER + whole - sliding
    parts = [state[_STATE_HEADER:start], state[start:]] if 0 < sliding < whole else [state[_STATE_HEADER:]]
    one, many = (np.array([count], "<u4").view(np.uint8) for count in (1, streams))
    if not all(np.array_equal(part[: len(one)], one) for part in parts):
        return None
    empty = np.zeros((streams - 1) * len(one), np.uint8)
    spread = [piece for part in parts for piece in (many, part[len(one) :], empty)]
    return np.concatenate([state[:_STATE_HEADER], *spread])


def check_cache_types(path: Path, options: DecoderOptions) -> None:
    """Raise InvalidOptionError for a quantized cache that the heads of a decoder.gguf do not divide into.

    Without flash attention llama.cpp would abort the process, with it blame something else.
    """
    quantized = [name for name in (options.cache_type, options.value_type) if name not in FLOAT_TYPES]
    head = read_figures(path).head_dim if quantized else 0
    if head % _CACHE_BLOCK:
        raise InvalidOptionError(
            f"a KV cache of {quantized[0]} needs heads of a multiple of {_CACHE_BLOCK} values, and those of this "
            f"model have {head}: take {', '.join(FLOAT_TYPES[:-1])} or {FLOAT_TYPES[-1]}"
        )
