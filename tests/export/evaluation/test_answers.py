"""Two models' predictions over an answer: what they read, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ayaedge import Bundle, BundleError, InvalidOptionError
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.images.load import load_rgb
from ayaedge.images.tiling import normalize
from ayaedge.text.prompt import Message, PromptBuilder
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.evaluation.answers import WrittenAnswer, _window, compare_answers
from ayaedge_export.evaluation.checkpoint_model import CheckpointModel
from ayaedge_export.evaluation.reference import Reference
from ayaedge_export.evaluation.scorers import BundleScorer

PICTURES = Path(__file__).parents[3] / "examples" / "pictures"
CELLS, HEART = (PICTURES / f"{name}.png" for name in ("six-cells", "one-heart"))
CONTEXT = 512
ANSWERS = (
    WrittenAnswer("one", "en", "What number is at the bottom left?", "2675", (CELLS.read_bytes(),)),
    WrittenAnswer("two", "de", "Was ist zu sehen?", "Herz: rot", (CELLS.read_bytes(), HEART.read_bytes())),
    WrittenAnswer("none", "en", "Hello!", "Hello! Ask me about a picture.", (), "Be brief."),
)


@pytest.fixture(scope="module")
def small() -> Bundle:
    return read_bundle(demo_bundle())


@pytest.fixture(scope="module")
def builder(exact_bundle: Bundle) -> PromptBuilder:
    with Decoder(exact_bundle.decoder_path, exact_bundle.manifest, DecoderOptions(context_size=2)) as decoder:
        tokenize = decoder.vocabulary.tokenize
        yield PromptBuilder(exact_bundle.manifest, tokenize)


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer.key)
def test_question_and_answer_are_read_as_the_reference_reads_them(
    answer: WrittenAnswer, builder: PromptBuilder, exact_bundle: Bundle, reference: Reference
) -> None:
    window = _window(builder, exact_bundle.manifest, answer, 4, CONTEXT, None)
    assert window is not None
    messages = [Message("user", answer.question, len(answer.images)), Message("assistant", answer.text)]
    if answer.system:
        messages.insert(0, Message("system", answer.system))
    images = [load_rgb(data) for data in answer.images]
    whole, pixels = reference.inputs(messages, images, generate=False)
    asked, _ = reference.inputs(messages[:-1], images)
    assert list(window.prompt.ids) == whole[: len(window.prompt.ids)]
    written = whole[
        window.first + 1 : len(window.prompt.ids)
    ]  # with the markers that the model writes around it
    assert reference.processor.tokenizer.decode(written, skip_special_tokens=True) == answer.text
    assert asked == whole[: window.first + 1]
    if pixels is not None:
        assert window.tiles is not None
        assert np.array_equal(normalize(window.tiles, exact_bundle.manifest.tiling), pixels)


def test_a_checkpoint_and_its_exact_bundle_predict_the_same_over_answers(
    exact_bundle: Bundle, small: Bundle, tiny: Path
) -> None:
    checkpoint = open_checkpoint(tiny)
    exact = compare_answers(exact_bundle, checkpoint, ANSWERS, context=CONTEXT)
    rounded = compare_answers(small, checkpoint, ANSWERS, context=CONTEXT)
    assert list(exact) == list(rounded) == ["one", "two", "none"]
    for key, found in exact.items():
        assert found.kl.mean() < 1e-4 < 10 * rounded[key].kl.mean() + 1e-4
        assert len(found.kl) == len(rounded[key].kl) > 1
    assert sum(found.kl.sum() for found in rounded.values()) > 10 * sum(f.kl.sum() for f in exact.values())


def test_pictures_of_a_data_set_do_not_stay_in_memory(exact_bundle: Bundle, builder: PromptBuilder) -> None:
    windows = [
        _window(builder, exact_bundle.manifest, ANSWERS[0], number, CONTEXT, None) for number in range(4, 8)
    ]
    scorer = BundleScorer(exact_bundle, context_size=CONTEXT)
    try:
        for window in windows:
            assert window is not None
            scorer.prepare([window])
            assert list(scorer._features) == [window.image]
    finally:
        scorer.close()


def test_what_was_compared_is_known_by_what_it_is_and_not_by_its_name(
    exact_bundle: Bundle, small: Bundle, tmp_path: Path
) -> None:
    journal, done = tmp_path / "kl.jsonl", []

    def compare(bundle: Bundle, *answers: WrittenAnswer) -> int:
        done.clear()
        found = compare_answers(
            bundle, exact_bundle, answers, context=CONTEXT, journal=journal, max_tiles=1, advance=done.append
        )
        assert set(found) == {answer.key for answer in answers}
        return len(done)

    one = ANSWERS[2]
    assert compare(small, one) == 1
    assert compare(small, replace(one, key="renamed")) == 0
    assert compare(small, one, replace(one, key="more", text="Hello!")) == 1
    assert compare(exact_bundle, one) == 1
    assert compare(small, replace(one, system=None)) == 1


def test_what_does_not_fit_is_cut_and_what_has_no_room_for_an_answer_left_out(
    exact_bundle: Bundle, small: Bundle
) -> None:
    whole = compare_answers(small, exact_bundle, ANSWERS[2:], context=CONTEXT)["none"]
    some = {}
    for context in range(16, 64, 4):
        some = compare_answers(small, exact_bundle, ANSWERS[2:], context=context)
        if some:
            break
    assert 1 <= len(some["none"].kl) < len(whole.kl)
    assert np.allclose(some["none"].kl, whole.kl[: len(some["none"].kl)], atol=1e-3)


def test_models_that_are_no_relatives_are_not_compared(exact_bundle: Bundle, wide_bundle: Path) -> None:
    stranger = read_bundle(wide_bundle)
    tiling = replace(stranger.manifest.tiling, max_tiles=3)
    other = Bundle(stranger.directory, replace(stranger.manifest, tiling=tiling))
    with pytest.raises(BundleError, match="tilings differ"):
        compare_answers(exact_bundle, other, ANSWERS, context=CONTEXT)


def test_a_checkpoint_is_asked_for_greedy_answers_alone(tiny: Path, reference: Reference) -> None:
    model = CheckpointModel.__new__(CheckpointModel)
    model._reference = reference
    request = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2}
    answer = model.create_chat_completion(request)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2
    with pytest.raises(InvalidOptionError, match="not asked with 'max_tiles, temperature'"):
        model.create_chat_completion({**request, "temperature": 1, "max_tiles": 2})
