"""Answers with what is known of a prompt, and without: the same tokens, and only the new ones are computed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge import NO_CACHE, AyaVision, CacheOptions, DecoderOptions
from ayaedge.engine.prefix_cache import KnownPrefix
from ayaedge.engine.segments import Segment, split_prompt
from ayaedge.text.prompt import Prompt, Span, common_start

IMAGES = sorted((Path(__file__).parents[3] / "examples" / "pictures").glob("*.png"))
QUESTIONS = [
    "What number is at the bottom left?", "右下の形は何ですか？", "Describe the picture.", "ما لون الشكل؟", "Hello",
]  # fmt: skip
CASES = 200


@pytest.fixture(scope="module")
def forgetful(wide_bundle: Path) -> Iterator[AyaVision]:
    """Computes every prompt from its beginning."""

    def recall(self: KnownPrefix, segments: Sequence[Segment]) -> list[Segment]:
        self._decoder.clear()
        return list(segments)

    with pytest.MonkeyPatch.context() as patch, AyaVision.load(wide_bundle, cache=NO_CACHE) as model:
        patch.setattr(model._engine.prefix, "recall", recall.__get__(model._engine.prefix))
        yield model


def test_a_second_question_computes_only_its_own_tokens(
    wide_bundle: Path, tmp_path: Path, computed: list[int]
) -> None:
    with AyaVision.load(wide_bundle, cache=CacheOptions(directory=tmp_path)) as model:
        first = model.ask(QUESTIONS[0], images=[IMAGES[0]], max_tokens=1)
        assert first.usage.cached_tokens == 0
        assert sum(computed) == first.usage.prompt_tokens
        computed.clear()
        second = model.ask(QUESTIONS[1], images=[IMAGES[0]], max_tokens=1)
        assert sum(computed) == second.usage.prompt_tokens - second.usage.cached_tokens
        assert second.usage.cached_tokens > second.usage.image_tokens


def test_another_process_and_another_image_between_them_do_not_matter(
    wide_bundle: Path, tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CacheOptions(directory=tmp_path)
    with AyaVision.load(wide_bundle, cache=options) as model:
        first = model.ask(QUESTIONS[0], images=[IMAGES[0]])
        model.ask(QUESTIONS[0], images=[IMAGES[1]])
    with AyaVision.load(wide_bundle, cache=options) as model:
        monkeypatch.setattr(model._engine.vision, "run", lambda _: pytest.fail("the image was encoded again"))
        computed.clear()
        again = model.ask(QUESTIONS[0], images=[IMAGES[0]])
        assert sum(computed[:1]) == again.usage.prompt_tokens - again.usage.cached_tokens
        assert again.ids == first.ids
        assert model.ask(QUESTIONS[0], images=[IMAGES[1]]).usage.cached_tokens > 0


@pytest.fixture(scope="module")
def computed_anew(forgetful: AyaVision) -> Callable[..., tuple[tuple[int, ...], NDArray[np.float32]]]:
    """The tokens of an answer that nothing was known for, and the logits of its last one; each is computed once."""
    known: dict[str, tuple[tuple[int, ...], NDArray[np.float32]]] = {}

    def ask(question: str, **given: Any) -> tuple[tuple[int, ...], NDArray[np.float32]]:
        key = repr((question, given))
        if key not in known:
            known[key] = forgetful.ask(question, **given).ids, forgetful._engine.decoder.logits().copy()
        return known[key]

    return ask


@pytest.mark.parametrize("disk", [True, False])
def test_answers_do_not_depend_on_what_is_known(
    wide_bundle: Path,
    computed_anew: Callable[..., tuple[tuple[int, ...], NDArray[np.float32]]],
    tmp_path: Path,
    disk: bool,
) -> None:
    """Evictions and restarts included: there is room for few states, and the model is loaded anew now and then."""
    options = CacheOptions(
        directory=tmp_path, disk_bytes=900_000 if disk else 0, memory_bytes=200_000 if disk else 900_000
    )
    chance, known, model = random.Random(7), 0, AyaVision.load(wide_bundle, cache=options)
    for _ in range(CASES // 2):
        if chance.random() < 0.1:
            model.close()
            model = AyaVision.load(wide_bundle, cache=options)
        given: dict[str, Any] = {
            "images": chance.choices(IMAGES, k=chance.choice([0, 1, 1, 1, 2])),
            "system": chance.choice([None, None, None, "Be brief."]),
            "max_tiles": chance.choice([None, None, 2]),
            "max_tokens": chance.choice([1, 4, 8]),
        }
        question = chance.choice(QUESTIONS)
        answer, (ids, logits) = model.ask(question, **given), computed_anew(question, **given)
        assert answer.ids == ids
        assert np.array_equal(model._engine.decoder.logits(), logits)
        known += answer.usage.cached_tokens > 0
    model.close()
    assert CASES // 8 < known < CASES // 2


def test_a_state_of_other_options_is_not_used(wide_bundle: Path, tmp_path: Path) -> None:
    for cached, options in (
        (False, DecoderOptions()), (True, DecoderOptions(context_size=512)), (False, DecoderOptions(cache_type="f32")),
        (False, DecoderOptions(batch_size=64)), (True, DecoderOptions(threads=1)),
    ):  # fmt: skip
        with AyaVision.load(wide_bundle, decoder=options, cache=CacheOptions(directory=tmp_path)) as model:
            answer = model.ask(QUESTIONS[0], images=[IMAGES[0]], max_tokens=2)
            assert (answer.usage.cached_tokens > 0) == cached, options


def test_a_state_that_llama_cpp_refuses_is_computed_again(wide_bundle: Path, tmp_path: Path) -> None:
    options = CacheOptions(directory=tmp_path)
    with AyaVision.load(wide_bundle, cache=options) as model:
        expected = model.ask(QUESTIONS[0], images=[IMAGES[0]])
        store = model._engine.prefix._states
        for entry in tmp_path.glob("ayaedge/*.state"):
            store.save(entry.stem, np.zeros(1000, np.uint8))  # intact, but no state
    with AyaVision.load(wide_bundle, cache=options) as model:
        answer = model.ask(QUESTIONS[0], images=[IMAGES[0]])
        assert answer.usage.cached_tokens == 0
        assert answer.ids == expected.ids


def test_an_answer_that_was_closed_early_leaves_its_prefix(wide_bundle: Path, forgetful: AyaVision) -> None:
    with AyaVision.load(wide_bundle, cache=NO_CACHE) as model:
        stream = model.stream(QUESTIONS[2], images=[IMAGES[0]])
        next(stream)
        stream.close()
        answer = model.ask(QUESTIONS[0], images=[IMAGES[0]])
        assert answer.usage.cached_tokens > 0
        assert answer.ids == forgetful.ask(QUESTIONS[0], images=[IMAGES[0]]).ids


def test_a_sliding_window_that_was_cut_off_is_not_looked_back_into() -> None:
    """A restored state holds the last window only; shorter prefixes of it are computed again."""
    with AyaVision.load(cache=NO_CACHE) as model:
        decoder, window = model._engine.decoder, model.bundle.manifest.decoder.sliding_window
        assert window is not None
        ids = [5 + i % 50 for i in range(3 * window)]
        decoder.clear()
        decoder.decode_tokens(ids)
        state = decoder.state()
        decoder.clear()
        assert not decoder.append_state(state, len(ids))  # its sliding layers begin later than the others
        decoder.decode_tokens(ids)
        decoder._llama.llama_memory_seq_rm(decoder._llama.llama_get_memory(decoder.handle), 0, 0, window)
        assert not decoder.keep(window)
        assert decoder.position == len(ids)
        assert decoder.keep(len(ids))
        assert not decoder.keep(len(ids) + 1)
        assert not decoder.keep(0)


def test_states_of_parts_join_to_the_whole() -> None:
    with AyaVision.load(cache=NO_CACHE) as model:
        decoder = model._engine.decoder
        ids = [5 + i % 50 for i in range(60)]

        def logits() -> Any:
            decoder.decode_tokens([9])
            return decoder.logits()

        decoder.clear()
        decoder.decode_tokens(ids[:20])
        first = decoder.state()
        decoder.decode_tokens(ids[20:])
        second = decoder.state(20)
        expected = logits()
        decoder.clear()
        assert decoder.append_state(first, 20)
        assert decoder.append_state(second, 60)
        np.testing.assert_array_equal(logits(), expected)
        assert first.nbytes + second.nbytes < 1.1 * decoder.state().nbytes
        decoder.clear()
        assert not decoder.append_state(second, 60)  # what it continues is missing
        assert decoder.append_state(first, 20)
        assert not decoder.append_state(second[:-7].copy(), 60)
        assert decoder.position == 0


def test_a_prefix_longer_than_the_window_is_kept_in_the_context_alone(tmp_path: Path) -> None:
    """Of sliding layers a state has the last window only; logits behind it would be rounded in another way."""
    options = CacheOptions(directory=tmp_path)
    with AyaVision.load(cache=options) as model:
        expected = model.ask(QUESTIONS[0], images=[IMAGES[0]])
        assert expected.usage.prompt_tokens > (model.bundle.manifest.decoder.sliding_window or 0)
        assert list(tmp_path.rglob("*.state")) == []
        again = model.ask(QUESTIONS[0], images=[IMAGES[0]])
        assert again.usage.cached_tokens > 0
        assert again.ids == expected.ids


def test_segments_end_at_the_preamble_and_around_images() -> None:
    prompt = Prompt(tuple(range(100)), (Span(20, 50), Span(50, 80)))
    segments = split_prompt(prompt, [b"one", b"two"], model=b"m", preamble=range(8))
    assert [(s.start, s.stop, s.image) for s in segments] == [
        (0, 8, None), (8, 20, None), (20, 50, 0), (50, 80, 1), (80, 100, None),
    ]  # fmt: skip
    assert len({s.key for s in segments}) == 5
    other = split_prompt(prompt, [b"one", b"three"], model=b"m", preamble=range(8))
    assert [a.key == b.key for a, b in zip(segments, other, strict=True)] == [True, True, True, False, False]
    assert (
        split_prompt(prompt, [b"one", b"two"], model=b"n")[0].key
        != split_prompt(prompt, [b"one", b"two"], model=b"m")[0].key
    )
    assert [s.stop for s in split_prompt(prompt, [b"", b""], model=b"", preamble=[1, 2])] == [20, 50, 80, 100]


def test_the_common_start_of_two_prompts() -> None:
    assert common_start([1, 2, 3], [1, 2, 4]) == (1, 2)
    assert common_start([1, 2], [1, 2, 4]) == (1, 2)
    assert common_start([], [1]) == ()
