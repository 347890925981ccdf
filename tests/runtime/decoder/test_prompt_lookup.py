"""Guessing what an answer copies: which guesses, when, and that the answer does not change."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from ayaedge import AyaVision, DecoderOptions
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.prompt_lookup import LookupDecoder, PromptLookup, Worth
from ayaedge.errors import BackendError

IMAGE = 7
CASES = 200


def test_what_followed_the_same_run_is_guessed() -> None:
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 1, 2, 3], IMAGE)
    assert lookup.guess(2) == [4, 5]
    assert lookup.guess(10) == [4, 5, 6, 1, 2, 3]
    lookup.push(9)
    assert lookup.guess(3) == []
    for token in (1, 2, 3):
        lookup.push(token)
    assert lookup.guess(1) == [9]  # the latest place counts


def test_images_are_never_guessed_and_end_runs() -> None:
    assert PromptLookup([1, 2, 3, IMAGE, 8, 1, 2, 3], IMAGE).guess(4) == []
    assert PromptLookup([1, 2, 3, 4, IMAGE, 8, 1, 2, 3], IMAGE).guess(4) == [4]
    assert PromptLookup([IMAGE, IMAGE, IMAGE, 5, IMAGE, IMAGE, IMAGE], IMAGE).guess(2) == []


@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_short_texts_give_no_guess(size: int) -> None:
    assert PromptLookup([1] * size, IMAGE).guess(3) == []


def test_guessing_rests_where_it_does_not_pay() -> None:
    worth = Worth()
    assert not worth.allows()  # nothing to compare with yet
    worth.plain(1.0)
    for _ in range(4):
        assert worth.allows()
        worth.guessed(2.0, 1)
    assert [worth.allows() for _ in range(33)] == [False] * 32 + [True]
    for _ in range(8):
        assert worth.allows()
        worth.guessed(2.0, 3)


@pytest.fixture(scope="module")
def decoders() -> Iterator[tuple[AyaVision, Decoder]]:
    with AyaVision.load() as model:
        bundle = model.bundle
        options = DecoderOptions(draft_tokens=6)
        with Decoder(bundle.decoder_path, bundle.manifest, options) as drafting:
            yield model, drafting


def greedy(decoder: Decoder, ids: list[int], limit: int) -> tuple[list[int], int]:
    """Tokens one by one, and how many steps that took."""
    decoder.clear()
    decoder.decode_tokens(ids)
    tokens = []
    for number in range(limit):
        tokens.append(int(decoder.logits().argmax()))
        if number + 1 < limit:
            decoder.decode_tokens([tokens[-1]])
    return tokens, limit


def guessed(decoder: Decoder, ids: list[int], limit: int) -> list[int]:
    """The same tokens behind ids that the decoder holds, with guesses."""
    lookup, tokens = LookupDecoder(decoder, ids, IMAGE), [decoder.likeliest()[-1]]
    while len(tokens) < limit:
        tokens += lookup.decode(tokens[-1], limit - len(tokens))
    return tokens


def test_answers_are_the_same_with_and_without_guesses(decoders: tuple[AyaVision, Decoder]) -> None:
    model, drafting = decoders
    rng = np.random.default_rng(4)
    steps = tokens = 0
    batches = []
    plain = drafting.decode_tokens
    drafting.decode_tokens = lambda ids, **more: batches.append(len(ids)) or plain(ids, **more)  # type: ignore[method-assign, func-returns-value]
    for _ in range(CASES):
        run = [int(token) for token in rng.integers(300, 2000, int(rng.integers(2, 12)))]
        ids = run * int(rng.integers(1, 6))
        limit = int(rng.integers(1, 40))
        expected, _ = greedy(model._engine.decoder, ids, limit)
        drafting.clear()
        plain(ids)
        batches.clear()
        assert guessed(drafting, ids, limit) == expected
        steps, tokens = steps + len(batches), tokens + limit
    assert steps < 0.8 * tokens  # a model that repeats itself is guessed often
    drafting.decode_tokens = plain  # type: ignore[method-assign]


def test_a_question_is_answered_the_same_with_guesses() -> None:
    image = np.random.default_rng(0).integers(0, 256, (320, 480, 3), dtype=np.uint8)
    questions = ["What is here?", "Describe the picture.", "形は？"]
    answers = []
    for draft in (0, 5):
        with AyaVision.load(decoder=DecoderOptions(draft_tokens=draft)) as model:
            answers.append([model.ask(q, images=[image], max_tokens=30).ids for q in questions])
    assert answers[0] == answers[1]


def test_the_context_may_end_inside_guesses() -> None:
    with AyaVision.load(decoder=DecoderOptions(context_size=96, draft_tokens=8)) as model:
        decoder = model._engine.decoder
        ids = list(itertools.islice(itertools.cycle(range(300, 306)), 80))
        decoder.clear()
        decoder.decode_tokens(ids)
        room = decoder.context_size - len(ids)
        assert len(guessed(decoder, ids, room)) == room
        assert decoder.position <= decoder.context_size


def test_more_logits_than_were_reserved_are_refused(decoders: tuple[AyaVision, Decoder]) -> None:
    drafting = decoders[1]
    with pytest.raises(BackendError, match="draft_tokens of 7"):
        drafting.decode_tokens([300] * 8, all_logits=True)
