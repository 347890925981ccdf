"""Weights and numbers that are none, in the real decoder: an error at once instead of an answer without end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from altered_bundle import state_contents

from ayaedge import NO_CACHE, AyaVision, BackendError, DecoderOptions
from ayaedge.bundle import Bundle, demo_bundle
from ayaedge.decoder.gguf_file import read_header
from ayaedge.decoder.logits import read_logits

QUESTION = "What number is at the bottom left?"
SIX = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
SAYS = r"logits are of no use \((nan|inf|-inf|0) for \d+ of \d+ tokens\): its weights are damaged, .* export the bundle"
EVERYWHERE = slice(None)
WAYS: dict[str, dict[str, Any]] = {
    "the likeliest token": {},
    "draws": {"temperature": 0.7, "top_k": 5, "seed": 1},
    "a grammar": {"grammar": 'root ::= [0-9]+ | "x"'},
    "a grammar and draws": {"grammar": 'root ::= [0-9]+ | "x"', "temperature": 1.0},
    "log-probabilities": {"top_logprobs": 2},
}


def damaged(bundle: Path, directory: Path, value: float, places: slice = EVERYWHERE) -> Path:
    """A copy of a bundle whose last norm has this weight at these places."""
    copy = shutil.copytree(bundle, directory / "copy")
    header = read_header(copy / "decoder.gguf")
    (norm,) = (tensor for tensor in header.tensors if tensor.name == "output_norm.weight")
    weights: np.memmap[Any, Any] = np.memmap(
        copy / "decoder.gguf", np.float32, "r+", header.data_start + norm.offset, norm.shape
    )
    weights[places] = value
    weights.flush()
    state_contents(copy)
    return copy


@pytest.fixture(scope="module", params=["float weights", "quantized weights"])
def broken(
    request: pytest.FixtureRequest, exact_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AyaVision]:
    """A model with a weight that is no number; of a quantized head's inputs one alone is rounded away."""
    exact = request.param == "float weights"
    source, places = (exact_bundle.directory, slice(3, 4)) if exact else (demo_bundle(), EVERYWHERE)
    copy = damaged(source, tmp_path_factory.mktemp("nan"), float("nan"), places)
    with AyaVision.load(copy, cache=NO_CACHE) as model:
        yield model


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_that_is_no_number_is_an_error_at_the_first_token(broken: AyaVision, way: str) -> None:
    pieces: list[str] = []
    for _ in range(2):  # and is one for every question
        with pytest.raises(BackendError, match=SAYS):
            pieces.extend(broken.stream(QUESTION, **WAYS[way]))
    assert pieces == []


@pytest.mark.parametrize(("value", "drafts"), [(float("-inf"), 0), (3e38, 0), (float("nan"), 4)])
def test_what_is_infinite_or_overflows_is_an_error_too(
    exact_bundle: Bundle, tmp_path: Path, value: float, drafts: int
) -> None:
    copy, options = damaged(exact_bundle.directory, tmp_path, value), DecoderOptions(draft_tokens=drafts)
    with (
        AyaVision.load(copy, cache=NO_CACHE, decoder=options) as model,
        pytest.raises(BackendError, match=SAYS),
    ):
        model.ask(QUESTION)


def test_the_next_question_does_not_suffer_from_what_overflowed(exact_bundle: Bundle) -> None:
    """A position that is masked counts zero times, but zero times NaN is NaN."""
    with AyaVision.load(exact_bundle.directory, cache=NO_CACHE) as model:
        right = model.ask(QUESTION, images=[SIX], max_tokens=4).text
        seen = model.encode_image(SIX)
        assert seen.embeddings is not None
        huge = replace(seen, tiles=255 - seen.tiles, embeddings=np.full_like(seen.embeddings, 3e38))
        with pytest.raises(BackendError, match=SAYS):
            model.ask(QUESTION, images=[huge])
        assert model.ask(QUESTION, images=[SIX], max_tokens=4).text == right


def test_the_look_at_all_logits_costs_a_small_part_of_a_token(demo_model: AyaVision) -> None:
    decoder = demo_model._engine.decoder
    demo_model._engine.prefix.forget()
    decoder.clear()
    decoder.decode_tokens([5])
    spent = []
    for _ in range(50):
        begin = time.perf_counter()
        read_logits(decoder.handle, -1, decoder.vocabulary.size)
        spent.append(time.perf_counter() - begin)
    assert min(spent) < 0.001  # 10 µs for 2,000 tokens, 40 for 256,000
