"""What every llama.cpp context of a decoder is made with: threads, number formats, attention."""

from __future__ import annotations

from typing import Any

from ayaedge import llama
from ayaedge.decoder.options import CacheType, DecoderOptions
from ayaedge.hardware.machine import usable_threads

_BF16 = 30
"""ggml's number of the one type that llama-cpp-python has no name for."""


def context_parameters(options: DecoderOptions, *, flash: bool) -> Any:
    """`llama_context_params` with all that does not depend on how many sequences and tokens there are."""
    library = llama.library()
    parameters = library.llama_context_default_params()
    threads = options.threads or usable_threads()
    parameters.n_threads, parameters.n_threads_batch = threads, options.threads_batch or threads
    parameters.type_k = _cache_type(options.cache_type)
    parameters.type_v = _cache_type(options.value_type)
    wanted = "ENABLED" if flash else "DISABLED"
    parameters.flash_attn_type = getattr(library, f"LLAMA_FLASH_ATTN_TYPE_{wanted}")
    parameters.swa_full = True  # a pruned window cannot be cut back without silent errors
    return parameters


def _cache_type(name: CacheType) -> int:
    return int(getattr(llama.library(), f"GGML_TYPE_{name.upper()}", _BF16))
