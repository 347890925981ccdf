"""The decoder: a llama.cpp context that takes tokens and image embeddings and gives logits.

Drives llama.cpp through its low-level functions. Several misuses of those abort the process, so every call is
checked here first. What a prompt is made of is decided in `text.prompt`; sampling is in `decoder.sampling`.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.cancellation import Cancellation
from ayaedge.decoder.acceleration import contexts_with, kernel_identity, kernel_of
from ayaedge.decoder.context import sequence_parameters
from ayaedge.decoder.gguf_check import check_decoder
from ayaedge.decoder.kv_state import (
    append_tail,
    check_cache_types,
    read_state,
    read_tail,
    tail_bytes,
    write_state,
)
from ayaedge.decoder.logits import read_logits
from ayaedge.decoder.options import DecoderOptions
from ayaedge.decoder.scratch import Scratch
from ayaedge.decoder.token_embeddings import TokenEmbeddings
from ayaedge.decoder.vocabulary import Vocabulary
from ayaedge.decoder.weights import Weights, choose_layers, repacks
from ayaedge.errors import BackendError, BundleError, CancelledError, ClosedError, OutOfMemoryError
from ayaedge.hardware.devices import fewer_layers
from ayaedge.hardware.machine import processor
from ayaedge.manifest import Manifest

logger = logging.getLogger(__name__)

_CANCELLED = 2
"""What llama_decode says when it was told to stop."""
_CAPACITY_STEP = 512
"""Positions by which the KV cache grows: 67 MB for Aya Vision 8B."""


class Decoder:
    """One sequence in one llama.cpp context.

    A context manager; `close()` frees weights and KV cache. Not for use by two threads at once.
    """

    row = -1
    """Where the logits of its last position are, of those that its context holds."""

    def __init__(self, path: Path, manifest: Manifest, options: DecoderOptions | None = None):
        self.options = options or DecoderOptions()
        self.position = 0
        """Tokens and embeddings that the KV cache holds."""
        self._capacity = 0
        """Positions that there is memory for; grows on demand up to `context_size`."""
        self._last_batch, self._last_has_all = 0, False
        self._context: Any = None
        self._weights: Weights | None = None
        self._llama = llama.library()
        self._window = manifest.decoder.sliding_window or 0
        self.context_size = self.options.context_of(manifest.decoder.context_length)
        self._cancellation = Cancellation()
        check_decoder(path, manifest)
        check_cache_types(path, self.options)
        try:
            self._load(path)
            self._embeddings = TokenEmbeddings(path, manifest.decoder)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and the weights; the decoder cannot be used afterwards."""
        self._free_context()
        if self._weights is not None:
            self._weights.close()

    @property
    def _loaded(self) -> Weights:
        assert self._weights is not None  # `__init__` raises otherwise
        return self._weights

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer of these weights."""
        return self._loaded.vocabulary

    @property
    def gpu_layers(self) -> int:
        """Layers that are on a GPU."""
        return self._loaded.gpu_layers

    @property
    def handle(self) -> Any:
        """The llama_context, for samplers; ClosedError after `close()`."""
        if self._loaded.handle is None:
            raise ClosedError
        if self._context is None:  # growing failed or was interrupted
            self._context = self._make_context()
        return self._context

    def watch(self, cancellation: Cancellation) -> None:
        """From now on end `decode_*` with CancelledError as soon as this flag is set, within a fraction of a batch."""
        self._cancellation = cancellation
        self._set_abort_callback(self.handle)

    def _set_abort_callback(self, context: Any) -> None:
        flag = ctypes.cast(self._cancellation.buffer, ctypes.c_void_p)
        self._llama.llama_set_abort_callback(context, self._is_set, flag)

    @cached_property
    def _is_set(self) -> Any:
        """A C function that tells whether the string at an address is not empty: `strlen`.

        llama.cpp calls it some 20 times for each layer and batch. A Python function would need the interpreter's lock
        each time, and another busy Python thread would let it wait 5 ms for it.
        """
        library = ctypes.CDLL("msvcrt" if os.name == "nt" else None)
        return ctypes.cast(library.strlen, self._llama.ggml_abort_callback)

    def _free_context(self) -> None:
        context, self._context = self._context, None
        self.position = self._last_batch = 0
        if context is not None:
            self._llama.llama_free(context)

    def clear(self) -> None:
        """Forget everything that was decoded."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self.handle), True)
        self.position = self._last_batch = 0

    def reserve(self, count: int) -> None:
        """Have memory for `count` positions, at most `context_size`, and keep what was decoded.

        It comes by itself when positions are appended; a caller who knows how many there will be saves the moving.
        BackendError if there is not so much memory; everything decoded is forgotten then.
        """
        wanted = min(-(-count // _CAPACITY_STEP) * _CAPACITY_STEP, self.context_size)
        if wanted <= self._capacity:
            return
        if self._window and wanted > self._window:
            wanted = self.context_size  # behind the window a state is not whole any more: grow before that
        position, state = self.position, read_state(self.handle) if self.position else None
        self._free_context()
        before, self._capacity = self._capacity, wanted
        try:
            self._context = self._make_context()
        except BackendError:
            self._capacity = before
            raise
        if state is not None:
            if write_state(self.handle, state) != state.nbytes:
                self.clear()
                raise BackendError(f"llama.cpp could not move the KV cache: {llama.recent_errors()}")
            self.position = position

    def keep(self, count: int) -> bool:
        """Forget everything behind the first `count` positions; False, with nothing changed, if that is not possible.

        It is not when the sliding window of a restored state has lost what those positions would look back to.
        """
        memory = self._llama.llama_get_memory(self.handle)
        oldest = self._llama.llama_memory_seq_pos_min(memory, 0)
        if not 0 < count <= self.position or oldest > max(0, count - self._window):
            return False
        if not self._llama.llama_memory_seq_rm(memory, 0, count, -1):
            return False
        self.position = count
        return True

    def cut(self, count: int) -> None:
        """Forget the positions behind the first `count`, which were appended just now."""
        memory = self._llama.llama_get_memory(self.handle)
        if not self._llama.llama_memory_seq_rm(memory, 0, count, -1):
            raise BackendError(f"llama.cpp could not go back to position {count}")
        self.position = count

    @property
    def has_logits(self) -> bool:
        """Whether something was decoded since the last `clear`, `append_state` or growth of the cache."""
        return self._last_batch > 0

    @property
    def whole_until(self) -> int:
        """Positions below which `is_whole` is true."""
        return self._window or self.context_size + 1

    @property
    def is_whole(self) -> bool:
        """Whether `state` gives everything that was decoded: of sliding layers it gives the last window only.

        A state without the rest still leads to right logits, but they are rounded in another way.
        """
        return self.position < self.whole_until

    def state_bytes(self, start: int = 0) -> int:
        """The size of `state`, without a copy."""
        return tail_bytes(self.handle, start)

    def state(self, start: int = 0) -> NDArray[np.uint8]:
        """What the KV cache holds from position `start` on, for `append_state`."""
        return read_tail(self.handle, start)

    def append_state(self, state: NDArray[np.uint8], count: int) -> bool:
        """Put a state behind the current position, which takes that to `count`; if it does not fit, clear all: False.

        It must come from a decoder with the same weights and options, but for the context size and threads. There are
        no logits before the next token.
        """
        self.reserve(count)
        if not append_tail(self.handle, state, self.position, count):
            self.clear()
            return False
        self.position, self._last_batch = count, 0
        return True

    @property
    def identity(self) -> bytes:
        """What decides about the content of a state beside the weights, for keys."""
        options = self.options
        facts = (
            options.cache_type, options.value_type, self.uses_flash, options.batch_size, options.rows_at_once,
            self.gpu_layers, repacks(options), kernel_identity(kernel_of(options)),
        )  # fmt: skip
        cpu = processor()
        backends = [(gpu.backend, gpu.description) for gpu in self._loaded.gpus]
        return repr((*facts, self._llama.__version__, cpu.name, sorted(cpu.features), backends)).encode()

    @property
    def uses_flash(self) -> bool:
        """`DecoderOptions.uses_flash`, as it is with these weights."""
        return self._loaded.uses_flash(self.options)

    @property
    def attends(self) -> bool:
        """Whether our kernels compute flash attention, where it is used."""
        return self._loaded.attends(self.options)

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The input embeddings of tokens, (len(ids), hidden), as llama.cpp itself would look them up."""
        return self._embeddings.rows(ids)

    def decode_tokens(
        self, ids: Sequence[int], *, all_logits: bool = False, on_batch: Callable[[], None] | None = None
    ) -> None:
        """Append tokens at the current position; BackendError if llama.cpp fails or the context is full.

        With `all_logits` there are logits for each of them, which must be no more than `draft_tokens` + 1. `on_batch`
        is called after each batch.
        """
        if all_logits and len(ids) > 1 + self.options.draft_tokens:
            raise BackendError(f"logits for {len(ids)} tokens at once need draft_tokens of {len(ids) - 1}")
        self._check_room(len(ids))
        size = self.vocabulary.size
        if outside := [token for token in ids if not 0 <= token < size]:
            raise BackendError(f"token ids must lie between 0 and {size - 1}, not {outside[0]}")
        array, pointer = np.asarray(ids, np.int32), ctypes.POINTER(self._llama.llama_token)
        for part in self._batches(array):
            self._decode(len(part), token=part.ctypes.data_as(pointer), all_logits=all_logits)
            if on_batch:
                on_batch()

    def decode_embeddings(
        self, rows: NDArray[np.float32], *, on_batch: Callable[[], None] | None = None
    ) -> None:
        """Append embeddings (n, hidden) at the current position; `on_batch` and errors as `decode_tokens`."""
        self._check_room(len(rows))
        if rows.ndim != 2 or rows.shape[1] != self._embeddings.hidden_size:
            raise BackendError(
                f"embeddings must have shape (n, {self._embeddings.hidden_size}), not {rows.shape}"
            )
        if not np.isfinite(rows).all():  # llama.cpp would take them and answer with NaN
            raise BackendError("embeddings must be finite")
        array = np.ascontiguousarray(rows, np.float32)
        for part in self._batches(array):
            self._decode(len(part), embd=part.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
            if on_batch:
                on_batch()

    def likeliest(self) -> list[int]:
        """The token with the highest logit at each position of the last batch that has logits."""
        rows = range(self._last_batch) if self._last_has_all else [-1]
        return [int(self._row(index).argmax()) for index in rows]

    def logits(self) -> NDArray[np.float32]:
        """Logits of the last position (vocabulary,), or of the last batch (n, vocabulary) with `all_logits`."""
        if not (self.options.all_logits and self.has_logits):
            return self.last_logits()
        return np.stack([self._row(index) for index in range(self._last_batch)])

    def last_logits(self) -> NDArray[np.float32]:
        """Logits of the last position, (vocabulary,)."""
        return self._row(-1).copy()

    def check_logits(self) -> None:
        """Raise BackendError unless there are logits of the last position, and all of them are finite."""
        self._row(-1)

    def _row(self, index: int) -> NDArray[np.float32]:
        if not self.has_logits:  # llama.cpp would abort the process
            raise BackendError("there are no logits before the first token")
        return read_logits(self.handle, index, self.vocabulary.size)

    def _batches(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        return [array[i : i + self.options.batch_size] for i in range(0, len(array), self.options.batch_size)]

    def _decode(self, count: int, *, token: Any = None, embd: Any = None, all_logits: bool = False) -> None:
        """One llama_decode call: positions continue by themselves, logits for the last row unless all are kept."""
        all_logits = all_logits or self.options.all_logits
        self._scratch.require(min(count, self.options.rows_at_once), self.position + count)
        flags = (ctypes.c_int8 * count)(*([1] * count)) if all_logits else None
        llama.forget_errors()
        batch = self._llama.llama_batch(n_tokens=count, token=token, embd=embd, logits=flags)
        status = self._llama.llama_decode(self.handle, batch)
        if status == _CANCELLED:
            self._last_batch = 0
            memory = self._llama.llama_get_memory(self.handle)
            self.position = self._llama.llama_memory_seq_pos_max(memory, 0) + 1  # whole micro-batches stay
            raise CancelledError
        if status != 0:
            raise BackendError(f"llama.cpp could not decode (status {status}): {llama.recent_errors()}")
        self.position += count
        self._last_batch, self._last_has_all = count, all_logits

    def _check_room(self, count: int) -> None:
        if self.position + count > self.context_size:
            raise BackendError(
                f"{count} more tokens do not fit: {self.position} of {self.context_size} are used"
            )
        self.reserve(self.position + count)

    def _load(self, path: Path) -> None:
        """Load weights and make a context; on a GPU without memory for both, with ever fewer layers there."""
        asked, gpus = choose_layers(path, self.options)
        layers, reason = asked, ""
        while True:
            try:
                self._weights = Weights(path, repack=repacks(self.options), gpus=gpus, gpu_layers=layers)
                # on a GPU all of it at once: what fits is decided now
                self._capacity = self.context_size if gpus else min(_CAPACITY_STEP, self.context_size)
                self._scratch = Scratch(path, self.options, gpus)
                self._context = self._make_context()
                break
            except (BundleError, BackendError) as error:
                if not (layers or gpus):
                    raise
                self.close()
                reason = str(error)
                gpus = gpus if layers > 1 or (layers and self.options.offload_prompts) else []
                layers = fewer_layers(layers)
        if layers != asked:
            logger.warning(
                "%s layers did not fit into graphics memory: %s are there now, the others run on the processor (%s)",
                *(asked, layers, reason),
            )
        elif reason:
            logger.warning("prompts did not fit into graphics memory and run on the processor (%s)", reason)

    def new_context(self, parameters: Any) -> Any:
        """A llama_context over these weights, for the caller to free; OutOfMemoryError if there is no room for it."""
        llama.forget_errors()
        with contexts_with(kernel_of(self.options)):
            context = self._llama.llama_init_from_model(self._loaded.handle, parameters)
        if not context:
            raise OutOfMemoryError(
                f"llama.cpp could not make a context of {parameters.n_ctx} tokens ({llama.recent_errors()}): "
                "lower context_size, or free memory"
            )
        return self._scratch.afresh().checked(context, parameters)

    def _make_context(self) -> Any:
        context, self._scratch = self.new_context(self._context_parameters()), self._scratch.afresh()
        self._set_abort_callback(context)
        return context

    def _context_parameters(self) -> Any:
        return sequence_parameters(self.options, self._capacity, flash=self.uses_flash)
