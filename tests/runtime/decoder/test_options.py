"""No options of the decoder end the process: each is used as a question does, in children, or refused."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest

import probed
from ayaedge.bundle import Bundle, demo_bundle, read_bundle
from ayaedge.decoder.options import MAX_THREADS, CacheType
from ayaedge.hardware.probes import Probe
from ayaedge_export.exporter import export_checkpoint
from random_checkpoint import Shape, write_random_checkpoint

FLOATS = ("f16", "bf16", "f32")
CACHES = [
    {"cache_type": keys, "cache_type_v": values, "flash_attention": flash}
    for keys, flash in product(get_args(CacheType), (None, True, False))
    for values in {"f16", keys}
    if flash is not False or values in FLOATS
]
SIZES: list[dict[str, Any]] = [
    {"context_size": 2}, {"context_size": 2, "draft_tokens": 63}, {"batch_size": 1, "all_logits": True},
    {"batch_size": 3, "ubatch_size": 2, "all_logits": True}, {"batch_size": 1 << 16, "ubatch_size": 1 << 16},
    {"ubatch_size": 1, "draft_tokens": 63}, {"draft_tokens": 63, "batch_size": 4}, {"draft_tokens": 1},
    {"draft_tokens": 63, "all_logits": True, "batch_size": 8}, {"threads": 1, "threads_batch": MAX_THREADS},
    {"threads": MAX_THREADS, "threads_batch": 1}, {"gpu_layers": 0, "device": "cpu"}, {"all_logits": True},
]  # fmt: skip


@pytest.fixture(scope="module")
def narrow_heads(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """24 values in each, which blocks of a quantized cache do not divide."""
    directory = tmp_path_factory.mktemp("narrow")
    text = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    checkpoint = write_random_checkpoint(directory / "c", tiny, Shape(text=text, dtype="float16"))
    return export_checkpoint(checkpoint, directory / "b", quant="f16", vision="fp16")


def outcomes(bundle: Bundle, choices: list[dict[str, Any]]) -> list[str]:
    """What became of each choice, for which one child is enough as long as none ends it."""
    with Probe(probed.use_decoder, str(bundle.directory), choices) as child:
        results = [child.ask(300) for _ in choices]
    for choice, result in zip(choices, results, strict=True):
        assert result.death is None, (choice, result)
    return [str(result.value) for result in results]


def test_every_format_of_the_cache_and_every_size_works_or_is_refused() -> None:
    choices = CACHES + SIZES
    assert set(outcomes(read_bundle(demo_bundle()), choices)) == {"done"}


def test_a_quantized_cache_of_heads_that_are_no_whole_blocks_is_refused(narrow_heads: Bundle) -> None:
    for choice, outcome in zip(CACHES, outcomes(narrow_heads, CACHES), strict=True):
        quantized = [choice[name] for name in ("cache_type", "cache_type_v") if choice[name] not in FLOATS]
        if quantized:
            assert outcome.startswith(f"InvalidOptionError: a KV cache of {quantized[0]} needs heads"), choice
            assert "have 24: take f16, bf16 or f32" in outcome
        else:
            assert outcome == "done", choice
