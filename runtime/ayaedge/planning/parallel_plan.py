"""How many answers fit into memory side by side: arithmetic, nothing is made."""

from __future__ import annotations

from ayaedge.decoder.gguf_header import DecoderFigures
from ayaedge.decoder.options import DecoderOptions
from ayaedge.planning.costs import cache_element_bytes
from ayaedge.planning.gpu_plan import work_bytes

_SHARE = 0.8
"""Of the free memory: the rest is for what else the program and the system do meanwhile."""


def lanes_within(
    figures: DecoderFigures, options: DecoderOptions, *, most: int, tokens: int, free_bytes: int
) -> int:
    """Of `most` answers with prompts, `tokens` each, those whose KV caches fit side by side on the processor."""
    work = work_bytes(figures, context=tokens, batch=options.rows_at_once, flash_attention=options.uses_flash)
    return max(0, min(most, int((_SHARE * free_bytes - work) // kv_bytes(figures, options, tokens=tokens))))


def kv_bytes(figures: DecoderFigures, options: DecoderOptions, *, tokens: int) -> int:
    """Bytes of a KV cache of so many tokens."""
    return figures.kv_bytes(tokens, cache_element_bytes(options.cache_type, options.value_type))
