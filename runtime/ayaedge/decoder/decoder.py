"""The decoder: a llama.cpp context that takes tokens and image embeddings and gives logits.

Drives llama.cpp through its low-level functions. Several misuses of those abort the process, so every call is
checked here first. What a prompt is made of is decided in `text.prompt`; sampling is in `decoder.sampling`.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.cancellation import Cancellation
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import _FLOAT_TYPES, CacheType, DecoderOptions, repacks_by_default
from ayaedge.decoder.token_embeddings import TokenEmbeddings
from ayaedge.decoder.vocabulary import Vocabulary
from ayaedge.errors import (
    BackendError,
    BundleError,
    CancelledError,
    ClosedError,
    InvalidOptionError,
    OutOfMemoryError,
    list_faults,
)
from ayaedge.hardware.devices import Gpu, choose_decoder, decoder_gpus, device_list, fewer_layers
from ayaedge.hardware.machine import processor, usable_threads
from ayaedge.manifest import Manifest

logger = logging.getLogger(__name__)


_CANCELLED = 2
"""What llama_decode says when it was told to stop."""
_SCRATCH = 1
"""Number of a second sequence, in which a part of the first one is copied to and from states."""
_CAPACITY_STEP = 512
"""Positions by which the KV cache grows: 67 MB for Aya Vision 8B."""
_BF16 = 30
"""ggml's number of the one type that llama-cpp-python has no name for."""
_CACHE_BLOCK = 32
"""Values of a head that share a block in the other types."""


class Decoder:
    """One sequence in one llama.cpp context.

    A context manager; `close()` frees weights and KV cache. Not for use by two threads at once.
    """

    def __init__(self, path: Path, manifest: Manifest, options: DecoderOptions | None = None):
        self.options = options or DecoderOptions()
        self.position = 0
        """Tokens and embeddings that the KV cache holds."""
        self._capacity = 0
        """Positions that there is memory for; grows on demand up to `context_size`."""
        self._last_batch, self._last_has_all = 0, False
        self._context: Any = None
        self._model: Any = None
        self._llama = llama.library()
        self._window = manifest.decoder.sliding_window or 0
        self.context_size = self.options.context_of(manifest.decoder.context_length)
        self.gpu_layers = 0
        """Layers that are on a GPU."""
        self._cancellation = Cancellation()
        self._gpus: list[Gpu] = []
        self._check_cache(path)
        try:
            self._load(path)
            self._check_fits(path, manifest)
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
        if self._model is not None:
            self.vocabulary.close()
            self._llama.llama_model_free(self._model)
            self._model = None

    @property
    def handle(self) -> Any:
        """The llama_context, for samplers; AyaEdgeError after `close()`."""
        if self._model is None:
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
            wanted = (
                self.context_size
            )  # behind the window a state is not whole any more: grow once, before that
        position, state = self.position, self._whole_state() if self.position else None
        self._free_context()
        before, self._capacity = self._capacity, wanted
        try:
            self._context = self._make_context()
        except BackendError:
            self._capacity = before
            raise
        if state is not None:
            if self._set_state(state, 0) != state.nbytes:
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
    def is_whole(self) -> bool:
        """Whether `state` gives everything that was decoded: of sliding layers it gives the last window only.

        A state without the rest still leads to right logits, but they are rounded in another way.
        """
        return self._window == 0 or self.position < self._window

    def state_bytes(self, start: int = 0) -> int:
        """The size of `state`, without a copy."""
        memory = self._llama.llama_get_memory(self.handle)
        self._llama.llama_memory_seq_cp(memory, 0, _SCRATCH, start, -1)
        size = int(self._llama.llama_state_seq_get_size(self.handle, _SCRATCH))
        self._llama.llama_memory_seq_rm(memory, _SCRATCH, -1, -1)
        return size

    def state(self, start: int = 0) -> NDArray[np.uint8]:
        """What the KV cache holds from position `start` on, for `append_state`."""
        memory = self._llama.llama_get_memory(self.handle)
        self._llama.llama_memory_seq_cp(memory, 0, _SCRATCH, start, -1)
        try:
            return self._whole_state(_SCRATCH)
        finally:
            self._llama.llama_memory_seq_rm(memory, _SCRATCH, -1, -1)

    def append_state(self, state: NDArray[np.uint8], count: int) -> bool:
        """Put a state behind the current position, which takes that to `count`; if it does not fit, clear all: False.

        It must come from a decoder with the same weights and options, but for the context size and threads. There are
        no logits before the next token.
        """
        self.reserve(count)
        memory = self._llama.llama_get_memory(self.handle)
        read = self._set_state(state, _SCRATCH)
        first = self._llama.llama_memory_seq_pos_min(memory, _SCRATCH)
        last = self._llama.llama_memory_seq_pos_max(memory, _SCRATCH)
        if read != state.nbytes or (first, last) != (self.position, count - 1):
            self.clear()
            return False
        self._llama.llama_memory_seq_cp(memory, _SCRATCH, 0, -1, -1)
        self._llama.llama_memory_seq_rm(memory, _SCRATCH, -1, -1)
        self.position, self._last_batch = count, 0
        return True

    def _whole_state(self, sequence: int = 0) -> NDArray[np.uint8]:
        state = np.empty(self._llama.llama_state_seq_get_size(self.handle, sequence), np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        written = self._llama.llama_state_seq_get_data(self.handle, pointer, state.nbytes, sequence)
        if written != state.nbytes:
            raise BackendError(f"llama.cpp gave {written} bytes of its state instead of {state.nbytes}")
        return state

    def _set_state(self, state: NDArray[np.uint8], sequence: int) -> int:
        """Bytes that llama.cpp has read of it."""
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return int(self._llama.llama_state_seq_set_data(self.handle, pointer, state.nbytes, sequence))

    @property
    def identity(self) -> bytes:
        """What decides about the content of a state beside the weights, for keys."""
        options = self.options
        facts = (
            options.cache_type, options.value_type, self._flash, options.batch_size, options.rows_at_once,
            self.gpu_layers, self._repacks,
        )  # fmt: skip
        cpu = processor()
        backends = [(gpu.backend, gpu.description) for gpu in self._gpus]
        return repr((*facts, self._llama.__version__, cpu.name, sorted(cpu.features), backends)).encode()

    @property
    def _flash(self) -> bool:
        """With the layers that are really on a GPU."""
        return replace(self.options, gpu_layers=self.gpu_layers).uses_flash

    @property
    def _repacks(self) -> bool:
        return repacks_by_default() if self.options.repack is None else self.options.repack

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
        array = np.asarray(ids, np.int32)
        pointer = ctypes.POINTER(self._llama.llama_token)
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
        pointer = ctypes.POINTER(ctypes.c_float)
        for part in self._batches(array):
            self._decode(len(part), embd=part.ctypes.data_as(pointer))
            if on_batch:
                on_batch()

    def likeliest(self) -> list[int]:
        """The token with the highest logit at each position of the last batch that has logits."""
        size = self.vocabulary.size
        if not self.has_logits:  # llama.cpp would abort the process
            raise BackendError("there are no logits before the first token")
        rows = range(self._last_batch) if self._last_has_all else [-1]
        return [
            int(np.ctypeslib.as_array(self._llama.llama_get_logits_ith(self.handle, i), (size,)).argmax())
            for i in rows
        ]

    def logits(self) -> NDArray[np.float32]:
        """Logits of the last position (vocabulary,), or of the last batch (n, vocabulary) with `all_logits`."""
        size = self.vocabulary.size
        if not self.has_logits:
            raise BackendError("there are no logits before the first token")
        if self.options.all_logits:
            rows = [self._llama.llama_get_logits_ith(self.handle, i) for i in range(self._last_batch)]
            return np.stack([np.ctypeslib.as_array(row, (size,)) for row in rows])
        return self.last_logits()

    def last_logits(self) -> NDArray[np.float32]:
        """Logits of the last position, (vocabulary,)."""
        if not self.has_logits:
            raise BackendError("there are no logits before the first token")
        row = self._llama.llama_get_logits_ith(self.handle, -1)
        return np.ctypeslib.as_array(row, (self.vocabulary.size,)).copy()

    def _batches(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        step = self.options.batch_size
        return [array[start : start + step] for start in range(0, len(array), step)]

    def _decode(self, count: int, *, token: Any = None, embd: Any = None, all_logits: bool = False) -> None:
        """One llama_decode call: positions continue by themselves, logits for the last row unless all are kept."""
        all_logits = all_logits or self.options.all_logits
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

    def _check_cache(self, path: Path) -> None:
        """Without flash attention llama.cpp would abort the process, with it blame something else."""
        types = [self.options.cache_type, self.options.value_type]
        quantized = [name for name in types if name not in _FLOAT_TYPES]
        head = read_figures(path).head_dim if quantized else 0
        if head % _CACHE_BLOCK:
            raise InvalidOptionError(
                f"a KV cache of {quantized[0]} needs heads of a multiple of {_CACHE_BLOCK} values, and those of this "
                f"model have {head}: take {', '.join(_FLOAT_TYPES[:-1])} or {_FLOAT_TYPES[-1]}"
            )

    def _load(self, path: Path) -> None:
        """Weights and context; on a GPU that has not memory enough for both, with ever fewer layers there."""
        asked = self.gpu_layers = self._wanted_layers(path)
        while True:
            try:
                self._model = self._load_model(path)
                # on a GPU all of it at once: what fits is decided now
                self._capacity = (
                    self.context_size if self.gpu_layers else min(_CAPACITY_STEP, self.context_size)
                )
                self.vocabulary = Vocabulary(self._llama, self._model)
                self._context = self._make_context()
                break
            except (BundleError, BackendError):
                if self.gpu_layers == 0:
                    raise
                self.close()
                reason = llama.recent_errors()
                self.gpu_layers = fewer_layers(self.gpu_layers)
        if self.gpu_layers != asked:
            logger.warning(
                "%s layers did not fit into graphics memory: %s are there now, the others run on the processor (%s)",
                asked,
                self.gpu_layers,
                reason,
            )

    def _wanted_layers(self, path: Path) -> int:
        wanted, device = self.options.gpu_layers, self.options.device or "auto"
        if not wanted:
            return 0
        if device == "cpu":
            raise InvalidOptionError(f"gpu_layers is {wanted}, but the device is cpu: give one of them only")
        self._gpus = choose_decoder(device, decoder_gpus())
        if not self._gpus:
            raise InvalidOptionError(
                f"gpu_layers is {wanted}, but this build of llama-cpp-python sees no GPU; `ayaedge doctor` shows what "
                "it was built for, and how to install another one"
            )
        most = read_figures(path).layers + 1
        return most if wanted < 0 else min(wanted, most)

    def _load_model(self, path: Path) -> Any:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = self.gpu_layers
        if self._llama.llama_supports_gpu_offload():
            # without layers there must be no device either: llama.cpp would still copy weights there for batches
            self._devices = device_list(self._gpus if self.gpu_layers else [])
            parameters.devices = ctypes.cast(self._devices, ctypes.c_void_p)
        parameters.use_extra_bufts = self._repacks
        llama.forget_errors()
        model = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            raise BundleError(f"llama.cpp cannot load {path}: {llama.recent_errors()}")
        return model

    def _check_fits(self, path: Path, manifest: Manifest) -> None:
        """A decoder of another checkpoint loads well and answers nonsense, so compare it with the manifest."""
        expected = {"hidden size": manifest.decoder.hidden_size, "vocabulary": manifest.decoder.vocab_size}
        found = {
            "hidden size": self._llama.llama_model_n_embd(self._model),
            "vocabulary": self.vocabulary.size,
        }
        faults = [
            f"its {what} is {found[what]}, the manifest says {size}"
            for what, size in expected.items()
            if found[what] != size
        ]
        faults += [
            f"its token {token_id} is {self.vocabulary.text(token_id)!r}, the manifest says {token!r}"
            for token, token_id in manifest.tokens.added.items()
            if not faults and self.vocabulary.text(token_id) != token
        ]
        if faults:
            raise BundleError(list_faults(f"{path} does not belong to this bundle", faults))

    def _make_context(self) -> Any:
        context = self._llama.llama_init_from_model(self._model, self._context_parameters())
        if not context:
            raise OutOfMemoryError(
                f"llama.cpp could not make a context of {self._capacity} tokens ({llama.recent_errors()}): "
                "lower the context size, or free memory"
            )
        self._set_abort_callback(context)
        return context

    def _context_parameters(self) -> Any:
        options = self.options
        threads = options.threads or usable_threads()
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = self._capacity
        parameters.n_batch = options.batch_size
        parameters.n_ubatch = options.rows_at_once
        rows = options.batch_size if options.all_logits else 1 + options.draft_tokens
        parameters.n_outputs_max = max(rows, 1 + _SCRATCH)  # llama.cpp wants one for each sequence at least
        parameters.n_threads, parameters.n_threads_batch = threads, options.threads_batch or threads
        parameters.type_k = self._cache_type(options.cache_type)
        parameters.type_v = self._cache_type(options.value_type)
        flash = "ENABLED" if self._flash else "DISABLED"
        parameters.flash_attn_type = getattr(self._llama, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
        parameters.n_seq_max, parameters.kv_unified = 1 + _SCRATCH, True
        parameters.swa_full = True  # a pruned window cannot be cut back without silent errors
        return parameters

    def _cache_type(self, name: CacheType) -> int:
        return int(getattr(self._llama, f"GGML_TYPE_{name.upper()}", _BF16))
