"""Layers of a decoder on a GPU, compared with the processor: what a child process runs before their first use."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import read_bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions

_PROMPT, _ANSWER = 96, 8
"""Tokens that are decoded at once, and one by one."""
_CONTEXT = 512
PROMPT_WORK, ANSWER_WORK = 1024, 200
"""Of the work whose time is compared: a question about an image of five tiles, and its answer."""


def try_layers(directory: str, options: dict[str, Any]) -> dict[str, float]:
    """Decode the same tokens without and with the layers that `options` put on a device.

    Returns `kl`, the largest KL divergence of a position, `gain`, how many times as fast as the processor's the work
    is, and `layers` that were really there.
    """
    bundle, asked = read_bundle(directory), DecoderOptions(**options)
    context = min(_CONTEXT, bundle.manifest.decoder.context_length)
    asked = replace(asked, context_size=context, draft_tokens=0, all_logits=False, acceleration="off")
    found = []
    without = replace(asked, gpu_layers=0, offload_prompts=None, flash_attention=None)
    for chosen in (without, asked):
        with Decoder(bundle.decoder_path, bundle.manifest, chosen) as decoder:
            found.append((*_use(decoder), decoder.gpu_layers))
    (exact, usual, _), (logits, seconds, there) = found
    return {"kl": _divergence(exact, logits), "gain": usual / seconds, "layers": there}


def _use(decoder: Decoder) -> tuple[NDArray[np.float64], float]:
    """Logits behind a prompt and behind each of a few tokens more, and seconds that the work would take."""
    size, rng = decoder.vocabulary.size, np.random.default_rng(0)
    ids = [int(token) for token in rng.integers(0, size, min(_PROMPT, decoder.context_size - _ANSWER - 1))]
    decoder.decode_tokens(ids)  # loads weights and compiles what the device runs
    decoder.decode_tokens(ids[:1])
    decoder.clear()
    started = time.perf_counter()
    decoder.decode_tokens(ids)
    rows, prompt = [decoder.last_logits()], time.perf_counter() - started
    for token in ids[:_ANSWER]:
        decoder.decode_tokens([token])
        rows.append(decoder.last_logits())
    answer = (time.perf_counter() - started - prompt) / _ANSWER
    return np.stack(rows).astype(np.float64), prompt / len(ids) * PROMPT_WORK + answer * ANSWER_WORK


def _divergence(exact: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The largest KL divergence of two sets of logits (n, vocabulary)."""
    logs = [rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True) for rows in (exact, other)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).max())
