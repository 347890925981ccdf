"""What every llama.cpp context of a decoder is made with: threads, number formats, attention."""

from __future__ import annotations

from typing import Any

from ayaedge import llama
from ayaedge.decoder.kv_state import SCRATCH
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
    parameters.op_offload = options.offload_prompts is not False
    parameters.swa_full = True  # a pruned window cannot be cut back without silent errors
    return parameters


def sequence_parameters(options: DecoderOptions, capacity: int, *, flash: bool) -> Any:
    """All of them, for one sequence of at most `capacity` positions."""
    parameters = context_parameters(options, flash=flash)
    parameters.n_ctx = capacity
    parameters.n_batch, parameters.n_ubatch = options.batch_size, options.rows_at_once
    rows = options.batch_size if options.all_logits else 1 + options.draft_tokens
    parameters.n_outputs_max = max(rows, 1 + SCRATCH)  # llama.cpp wants one for each sequence at least
    parameters.n_seq_max, parameters.kv_unified = 1 + SCRATCH, True
    return parameters


def _cache_type(name: CacheType) -> int:
    return int(getattr(llama.library(), f"GGML_TYPE_{name.upper()}", _BF16))
