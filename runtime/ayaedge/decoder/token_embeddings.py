"""Rows of the token embedding table, read from the GGUF file.

An image's tile tags are ordinary tokens between runs of image embeddings. llama.cpp takes a batch of either
tokens or embeddings, so the tags are looked up here and whole images go to it as one run of embeddings.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.decoder.gguf_file import STORAGE_TYPES
from ayaedge.errors import BundleError
from ayaedge.manifest import DecoderInfo

_BLOCKS = {stored.name: (stored.weights, stored.block_bytes) for stored in STORAGE_TYPES.values()}
_DECODERS = {
    "Q5_0": "q5_0", "Q5_1": "q5_1", "Q8_0": "q8_0", "Q4_K": "q4_K", "Q5_K": "q5_K", "Q6_K": "q6_K", "IQ4_XS": "iq4_xs",
}  # fmt: skip
"""Names in ggml's `dequantize_row_*` functions."""


class TokenEmbeddings:
    """The table at the place that the manifest names, mapped and decoded row by row.

    Raises BundleError if the manifest's figures of it cannot be true.
    """

    def __init__(self, path: Path, decoder: DecoderInfo):
        table = decoder.embeddings
        weights, block_bytes = _BLOCKS.get(table.type, (1, 0))
        end = table.offset + decoder.vocab_size * table.row_bytes
        if (
            table.row_bytes * weights != decoder.hidden_size * block_bytes
            or table.offset < 0
            or end > path.stat().st_size
        ):
            raise BundleError(f"{path} cannot hold the embeddings that the manifest describes: {table}")
        self.hidden_size = decoder.hidden_size
        self._type = table.type
        self._table: NDArray[np.uint8] = np.memmap(
            path, np.uint8, "r", table.offset, (decoder.vocab_size, table.row_bytes)
        )

    def rows(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings of tokens, (len(ids), hidden) float32."""
        stored = np.ascontiguousarray(self._table[np.asarray(ids, np.int64)])
        if self._type in ("F32", "F16"):
            dtype = np.float32 if self._type == "F32" else np.float16
            return stored.view(dtype).astype(np.float32)
        result = np.empty((len(stored), self.hidden_size), np.float32)
        decode = getattr(llama.native_library("ggml-base"), f"dequantize_row_{_DECODERS[self._type]}")
        decode(
            ctypes.c_void_p(stored.ctypes.data),
            ctypes.c_void_p(result.ctypes.data),
            ctypes.c_int64(result.size),
        )
        return result
