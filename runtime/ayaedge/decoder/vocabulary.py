"""The tokenizer inside a GGUF file."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ayaedge import llama
from ayaedge.decoder.gguf_check import check_vocabulary
from ayaedge.errors import (
    BackendError,
    BundleError,
    ClosedError,
)


class Vocabulary:
    """The tokenizer inside the GGUF file; usable as long as its decoder is open."""

    def __init__(self, library: Any, model: Any):
        self._llama = library
        self._handle = library.llama_model_get_vocab(model)
        self._in_use = threading.Lock()
        self.size: int = library.llama_vocab_n_tokens(self._handle)
        """Number of tokens, padding included."""

    def close(self) -> None:
        """Refuse all further calls: the weights that it belongs to are being freed."""
        with self._in_use:
            self._handle = None

    @property
    def _vocab(self) -> Any:
        if self._handle is None:
            raise ClosedError
        return self._handle

    def tokenize(self, text: str) -> list[int]:
        """Ids of plain text; no added token is recognised in it and none is added.

        Safe from any thread, also beside `close`, like `piece`.
        """
        data = text.encode()
        room = len(data) + 1  # a byte-level token has at least one byte
        buffer = (self._llama.llama_token * room)()
        with self._in_use:
            count = self._llama.llama_tokenize(self._vocab, data, len(data), buffer, room, False, False)
        if count < 0:
            raise BackendError(f"llama.cpp could not tokenise {len(data)} bytes of text")
        return list(buffer[:count])

    def text(self, token: int) -> str:
        """The token as the vocabulary spells it; BackendError for an id that it does not have."""
        self._check_id(token)
        spelled = self._llama.llama_vocab_get_text(self._vocab, token)
        return str(spelled.decode("utf-8")) if spelled is not None else ""

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for in text, perhaps part of a character; errors as `text`."""
        self._check_id(token)
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            with self._in_use:
                count = self._llama.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _check_id(self, token: int) -> None:
        if not 0 <= token < self.size:  # llama.cpp would abort the process
            raise BackendError(f"token ids must lie between 0 and {self.size - 1}, not {token}")


@contextmanager
def open_vocabulary(path: Path) -> Iterator[Vocabulary]:
    """The tokenizer of a GGUF file, without its weights; BundleError if it cannot be loaded."""
    check_vocabulary(path)
    library = llama.library()
    parameters = library.llama_model_default_params()
    parameters.vocab_only, parameters.use_extra_bufts = True, False
    llama.forget_errors()
    model = library.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise BundleError(f"llama.cpp cannot load {path}: {llama.recent_errors()}")
    vocabulary = Vocabulary(library, model)
    try:
        yield vocabulary
    finally:
        vocabulary.close()
        library.llama_model_free(model)
