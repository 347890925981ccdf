"""Conversations: only new tokens are computed, cancelling leaves them usable, files bring them back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import time
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ayaedge import (
    NO_CACHE,
    AyaEdgeError,
    AyaVision,
    CacheOptions,
    CancelledError,
    ChatFileError,
    ClosedError,
    ContextLengthError,
    ImageError,
    InvalidOptionError,
    PromptError,
    Turn,
)
from ayaedge.text.prompt import Message

IMAGES = sorted((Path(__file__).parents[2] / "examples" / "pictures").glob("*.png"))
SIX = next(path for path in IMAGES if path.name == "six-cells.png")
PHOTO = np.random.default_rng(3).integers(0, 256, (480, 640, 3), np.uint8)
"""Twelve tiles and a thumbnail."""
QUESTIONS = [
    "What number is at the bottom left?", "右下の形は何ですか？", "Describe the picture.", "ما لون الشكل؟", "And now?",
    "हिन्दी में बताओ", "Что справа?", "Hello", "색깔은?", "Merci",
]  # fmt: skip
LONG: dict[str, Any] = {"temperature": 50.0, "seed": 1}
"""The small model then writes nonsense up to the end of its context."""


@pytest.fixture
def model(wide_bundle: Path, tmp_path: Path) -> Iterator[AyaVision]:
    with AyaVision.load(wide_bundle, cache=CacheOptions(directory=tmp_path / "cache")) as model:
        yield model


def test_ten_turns_about_an_image_compute_their_own_tokens_only(
    model: AyaVision, computed: list[int]
) -> None:
    chat, held = model.chat(), 0
    for number, question in enumerate(QUESTIONS):
        computed.clear()
        answer = chat.ask(question, images=[PHOTO] if number == 0 else (), max_tokens=12)
        usage = answer.usage
        assert usage.tiles[0] == 13
        new = usage.prompt_tokens - held
        assert usage.cached_tokens == held
        decoded = usage.completion_tokens - 1  # the last token is never decoded
        assert sum(computed) == new + decoded
        held = usage.prompt_tokens + decoded
    assert [turn.question for turn in chat.turns] == QUESTIONS


def test_the_prompt_of_a_later_turn_is_the_references(exact_model: AyaVision, reference: Any) -> None:
    """What the model wrote stands in the history as the template and the tokenizer would write it."""
    chat = exact_model.chat()
    messages: list[Message] = []
    for question in QUESTIONS[:3]:
        answer = chat.ask(question, images=[SIX] if not messages else ())
        messages += [Message("user", question, int(not messages)), Message("assistant", answer.text)]
    engine = exact_model._engine
    with_ids = engine.prompts.build(chat._dialogue(None, chat.turns).messages, [7], generate=True).ids
    assert with_ids == engine.prompts.build(messages, [7], generate=True).ids


def test_answers_equal_those_without_anything_known(model: AyaVision, wide_bundle: Path) -> None:
    chat = model.chat(system="Be brief.")
    answers = [
        chat.ask(q, images=[SIX] if i == 0 else (), max_tokens=12) for i, q in enumerate(QUESTIONS[:5])
    ]
    for number in range(5):
        with AyaVision.load(wide_bundle, cache=NO_CACHE) as fresh:
            again = fresh.chat(system="Be brief.")
            again._turns = chat.turns[:number]
            images = [SIX] if number == 0 else ()
            assert again.ask(QUESTIONS[number], images=images, max_tokens=12).text == answers[number].text


def test_two_conversations_take_turns_without_computing_anything_again(
    model: AyaVision, computed: list[int]
) -> None:
    chats = [model.chat(), model.chat(system="Answer in one word.")]
    known = [0, 0]
    for turn in range(4):
        for number, chat in enumerate(chats):
            computed.clear()
            usage = chat.ask(QUESTIONS[turn], images=[IMAGES[number]] if turn == 0 else ()).usage
            assert usage.cached_tokens == known[number] or turn == 0
            assert sum(computed) <= usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens
            known[number] = usage.prompt_tokens + usage.completion_tokens - 1


def test_images_may_come_at_any_turn(model: AyaVision) -> None:
    chat = model.chat()
    chat.ask("Hello", max_tokens=3)
    answer = chat.ask("What number is at the bottom left?", images=[SIX])
    assert chat.ask("Again?", images=[SIX, SIX], max_tokens=3).usage.cached_tokens > answer.usage.image_tokens
    assert [len(turn.images) for turn in chat.turns] == [0, 1, 2]


def test_a_failing_question_leaves_the_conversation_as_it_was(model: AyaVision) -> None:
    chat = model.chat()
    chat.ask("Hello", max_tokens=3)
    with pytest.raises(ImageError):
        chat.ask("x", images=[b"no image"])
    with pytest.raises(PromptError, match="must be a string"):
        chat.ask(5)  # type: ignore[arg-type]
    with pytest.raises(ContextLengthError):
        chat.ask("word " * 5000)
    with pytest.raises(InvalidOptionError, match="max_tokens"):
        chat.ask("x", max_tokens=0)
    assert len(chat.turns) == 1


def test_a_cancelled_answer_keeps_what_had_come_and_the_next_goes_on(model: AyaVision) -> None:
    chat = model.chat()
    chat.ask(QUESTIONS[0], images=[SIX])
    stream = chat.stream("Tell me more", **LONG)
    pieces = [next(stream) for _ in range(5)]
    stream.close()
    assert chat.turns[-1].stop_reason == "cancelled"
    assert chat.turns[-1].answer.startswith("".join(pieces))
    usage = chat.ask("And?", max_tokens=2).usage
    assert usage.cached_tokens > usage.image_tokens
    fresh = model.chat()
    fresh._turns = chat.turns[:1]
    assert fresh.ask("右下の形は何ですか？").text == "三角"


def test_a_question_that_is_cancelled_while_it_waits_never_happened(model: AyaVision) -> None:
    chat = model.chat()
    busy = model.stream("x", **LONG)
    next(busy)
    handle = chat.submit("Hello")
    handle.cancel()
    with pytest.raises(CancelledError) as caught:
        handle.result(5)
    assert caught.value.answer is None
    assert handle.exception() is caught.value
    assert chat.turns == ()
    busy.close()


def test_cancelling_stops_within_a_tile(model: AyaVision, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles: list[int] = []
    run = model._engine.vision.run
    monkeypatch.setattr(model._engine.vision, "run", lambda tile: (tiles.append(1), run(tile))[1])
    handles: list[Any] = []
    begun = threading.Event()

    def on_progress(step: str, done: int, of: int) -> None:
        begun.wait(5)
        if (step, done) == ("vision", 2):
            handles[0].cancel()

    handles.append(model.submit("x", images=[PHOTO], on_progress=on_progress))
    begun.set()
    with pytest.raises(CancelledError):
        handles[0].result(10)
    assert len(tiles) == 2
    assert model.ask(QUESTIONS[0], images=[SIX]).text == "2675"


def test_cancelling_inside_prefill_stops_within_a_micro_batch(wide_bundle: Path) -> None:
    """llama.cpp itself looks at the flag: not one more call, and whole micro-batches stay."""
    from ayaedge import DecoderOptions
    from ayaedge.cancellation import Cancellation

    options = DecoderOptions(context_size=2048, batch_size=2000, ubatch_size=50)
    with AyaVision.load(wide_bundle, decoder=options, cache=NO_CACHE) as model:
        decoder = model._engine.decoder
        ids = [5 + i % 90 for i in range(2000)]
        for attempt in range(50):  # until it is hit in the middle
            flag = Cancellation()
            decoder.clear()
            decoder.watch(flag)
            threading.Timer(0.02 * (attempt + 1), flag.set).start()
            with contextlib.suppress(CancelledError):
                decoder.decode_tokens(ids)
            if 0 < decoder.position < 2000:
                break
        assert 0 < decoder.position < 2000
        assert decoder.position % 50 == 0
        assert not decoder.has_logits
        decoder.watch(Cancellation())
        decoder.decode_tokens(ids[decoder.position :])  # it can go on where it stopped
        resumed = decoder.logits()
        decoder.clear()
        decoder.decode_tokens(ids)
        np.testing.assert_allclose(resumed, decoder.logits(), rtol=0, atol=5e-2)
        assert model.ask(QUESTIONS[0], images=[SIX]).text == "2675"


def test_a_flag_that_is_set_before_stops_the_first_call(model: AyaVision) -> None:
    from ayaedge.cancellation import Cancellation

    decoder, flag = model._engine.decoder, Cancellation()
    flag.set()
    decoder.clear()
    decoder.watch(flag)
    with pytest.raises(CancelledError):
        decoder.decode_tokens([5, 6, 7])
    assert decoder.position == 0


def test_a_handle_tells_of_progress_text_and_the_end(model: AyaVision) -> None:
    steps: list[tuple[str, int, int]] = []
    pieces: list[str] = []
    ended: list[bool] = []
    handle = model.submit(
        QUESTIONS[0], images=[SIX], on_text=pieces.append, on_progress=lambda *step: steps.append(step)
    )
    handle.add_done_callback(lambda handle: ended.append(handle.done()))
    answer = handle.result(30)
    assert "".join(pieces) == answer.text == "2675"
    assert handle.exception() is None
    assert ("vision", 7, 7) in steps
    assert steps[-1][0] == "prefill"
    assert steps[-1][1] == steps[-1][2]
    model.ask("x", max_tokens=1)
    assert ended == [True]


def test_a_faulty_callback_ends_its_own_request_only(model: AyaVision) -> None:
    def faulty(*_: object) -> None:
        raise ZeroDivisionError

    for callbacks in ({"on_text": faulty}, {"on_progress": faulty}):
        with pytest.raises(ZeroDivisionError):
            model.submit(QUESTIONS[0], images=[SIX], **callbacks).result(30)  # type: ignore[arg-type]
        assert model.ask(QUESTIONS[0], images=[SIX]).text == "2675"


def test_asking_from_a_callback_is_an_error_and_submitting_is_not(model: AyaVision) -> None:
    later: list[Any] = []

    def on_text(_piece: str) -> None:
        later.append(model.submit(QUESTIONS[0], images=[SIX]))
        model.ask("x")

    with pytest.raises(AyaEdgeError, match="use submit"):
        model.submit("Hello", on_text=on_text).result(30)
    assert later[0].result(30).text == "2675"


def test_closing_from_a_callback_is_safe(wide_bundle: Path) -> None:
    model = AyaVision.load(wide_bundle, cache=NO_CACHE)
    handle = model.submit("x", on_text=lambda _: model.close(), **LONG)
    with pytest.raises(ClosedError):
        handle.result(30)
    with pytest.raises(ClosedError):
        model.ask("x")
    model.close()


def test_a_conversation_holds_its_model(wide_bundle: Path) -> None:
    chat = AyaVision.load(wide_bundle, cache=NO_CACHE).chat()
    assert chat.ask(QUESTIONS[0], images=[SIX]).text == "2675"


def test_undo_and_clear(model: AyaVision) -> None:
    chat = model.chat("Be brief.")
    assert chat.undo() is None
    for question in ("One", "Two", "Three"):
        chat.ask(question, max_tokens=2)
    last = chat.undo()
    assert last is not None
    assert last.question == "Three"
    assert [turn.question for turn in chat.turns] == ["One", "Two"]
    chat.clear()
    assert chat.turns == ()
    assert chat.system == "Be brief."


NAMES = ["رحلة.ayachat", "旅行 日记.ayachat", "यात्रा.ayachat", "🧳 trip.ayachat", "with blanks.ayachat"]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_can_be_saved_and_opened(
    wide_bundle: Path, tmp_path: Path, computed: list[int], name: str
) -> None:
    options, path = CacheOptions(directory=tmp_path / "cache"), tmp_path / name
    with AyaVision.load(wide_bundle, cache=options) as model:
        chat = model.chat("Be brief.")
        chat.ask(QUESTIONS[0], images=[SIX])
        chat.ask(QUESTIONS[1])
        chat.save(path)
        expected = chat.ask(QUESTIONS[2])
    with AyaVision.load(wide_bundle, cache=options) as model:
        model.ask("Something else")
        opened = model.open_chat(path)
        assert (opened.system, [t.question for t in opened.turns]) == ("Be brief.", QUESTIONS[:2])
        assert [turn.ids for turn in opened.turns] == [turn.ids for turn in chat.turns[:2]]
        computed.clear()
        answer = opened.ask(QUESTIONS[2])
        assert answer.ids == expected.ids
        assert answer.usage.cached_tokens == expected.usage.cached_tokens > answer.usage.image_tokens
        assert sum(computed) == answer.usage.prompt_tokens - answer.usage.cached_tokens + len(answer.ids) - 1


def test_a_conversation_without_its_state_computes_it_again(wide_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.ayachat"
    with AyaVision.load(wide_bundle, cache=CacheOptions(directory=tmp_path / "one")) as model:
        chat = model.chat()
        chat.ask(QUESTIONS[0], images=[SIX])
        chat.save(path, state=False)
        small = path.stat().st_size
        chat.save(path)
        assert path.stat().st_size > 2 * small
        expected = chat.ask(QUESTIONS[1])
    with AyaVision.load(wide_bundle, cache=CacheOptions(directory=tmp_path / "other user")) as model:
        answer = model.open_chat(path).ask(QUESTIONS[1])  # somebody else's state is not used
        assert answer.usage.cached_tokens == 0
        assert answer.text == expected.text


def test_a_conversation_goes_on_with_another_model(
    wide_bundle: Path, exact_model: AyaVision, tmp_path: Path
) -> None:
    path = tmp_path / "c.ayachat"
    with AyaVision.load(wide_bundle, cache=NO_CACHE) as model:
        chat = model.chat()
        chat.ask("Hello", images=[SIX])
        chat.save(path)
    assert exact_model.open_chat(path).ask(QUESTIONS[0]).text == "2675"


def test_saving_waits_for_the_answer_and_truncated_ones_can_be_saved(
    model: AyaVision, tmp_path: Path
) -> None:
    chat, path = model.chat(), tmp_path / "c.ayachat"
    stream = chat.stream("Hello", max_tokens=30, **LONG)
    chat.save(path)
    assert stream.done()
    model.ask("Hello", max_tokens=1)
    assert model.open_chat(path).turns[0].answer == stream.answer.text
    assert model.open_chat(path).ask("Go on", max_tokens=1).usage.cached_tokens > 0


def test_a_file_that_is_no_conversation_is_refused(model: AyaVision, tmp_path: Path) -> None:
    (tmp_path / "x.ayachat").write_text("nothing")
    for path in (tmp_path / "x.ayachat", tmp_path / "missing.ayachat", tmp_path):
        with pytest.raises(ChatFileError):
            model.open_chat(path)
    with pytest.raises(ChatFileError):
        model.chat().save(tmp_path / "no" / "such" / "directory.ayachat")


def test_a_chat_that_was_saved_when_images_were_called_pictures_still_opens(demo_model: AyaVision) -> None:
    chat = demo_model.open_chat(Path(__file__).parent / "chat_file" / "with_pictures.ayachat")
    (turn,) = chat.turns
    assert (turn.question, turn.answer) == ("What shape is in the picture?", "heart")
    assert [(image.cost.width, image.cost.height, image.cost.tiles) for image in turn.images] == [
        (112, 112, 1)
    ]
    assert chat.ask("What color is in the picture?").text == "red"


def test_overflow_is_an_error_or_drops_the_oldest_turns(model: AyaVision) -> None:
    chat = model.chat("Be brief.")
    chat.ask("Old " * 150, images=[PHOTO], max_tokens=2)
    chat.ask("Middle " * 60, images=[SIX], max_tokens=2)
    long = "New " * 300
    with pytest.raises(ContextLengthError):
        chat.ask(long, max_tokens=2)
    answer = chat.ask(long, max_tokens=2, overflow="drop_oldest")
    assert answer.usage.dropped_turns == 1
    assert answer.usage.tiles == (7,)  # an image goes whole
    assert answer.usage.prompt_tokens + 2 <= model._engine.context_size
    assert len(chat.turns) == 3  # they are still there to be shown
    with pytest.raises(ContextLengthError):
        chat.ask("word " * 5000, overflow="drop_oldest")
    with pytest.raises(InvalidOptionError, match="overflow"):
        chat.ask("x", overflow="forget")  # type: ignore[arg-type]


def test_an_encoded_image_is_not_encoded_again(model: AyaVision, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, int, int]] = []
    page = model.encode_image(SIX, on_progress=lambda *step: steps.append(step))
    assert steps == [("vision", n, 7) for n in range(1, 8)]
    assert page.cost.tiles == 7
    assert page.embeddings is not None
    monkeypatch.setattr(model._engine.vision, "run", lambda _: pytest.fail("encoded again"))
    assert model.ask(QUESTIONS[0], images=[page]).text == "2675"
    assert model.ask(QUESTIONS[1], images=page).text == "三角"
    assert model.chat().ask(QUESTIONS[1], images=[page]).text == "三角"
    assert model.encode_image(page).key == page.key


def test_an_encoded_image_of_another_model_is_refused(model: AyaVision, exact_model: AyaVision) -> None:
    page = exact_model.encode_image(SIX)
    with pytest.raises(ImageError, match="image 1 was encoded by another model"):
        model.ask("x", images=[page])


def test_two_models_work_side_by_side(model: AyaVision, demo_model: AyaVision) -> None:
    handles = [m.submit(QUESTIONS[0], images=[SIX]) for m in (model, demo_model) for _ in range(4)]
    assert {handle.result(60).text for handle in handles} == {"2675"}


def test_counting_tokens_is_exact_and_does_not_wait(model: AyaVision) -> None:
    busy = model.stream("x", **LONG)
    next(busy)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": QUESTIONS[0]}, {"type": "image", "image": SIX.read_bytes()}],
        },
    ]
    count = model.count_tokens(messages)
    assert not busy.done()
    busy.close()
    assert count == model.ask(QUESTIONS[0], images=[SIX], system="Be brief.").usage.prompt_tokens
    fewer = model.count_tokens(messages, max_tiles=1)
    assert fewer == model.ask(QUESTIONS[0], images=[SIX], system="Be brief.", max_tiles=1).usage.prompt_tokens
    with pytest.raises(PromptError):
        model.count_tokens([{"role": "nobody", "content": "x"}])


def test_asyncio_has_twins_of_everything(model: AyaVision) -> None:
    async def talk() -> None:
        assert (await model.aask(QUESTIONS[0], images=[SIX])).text == "2675"
        stream = model.astream(QUESTIONS[0], images=[SIX])
        assert "".join([piece async for piece in stream]) == stream.answer.text == "2675"
        chat = model.chat()
        assert (await chat.aask(QUESTIONS[0], images=[SIX])).text == "2675"
        assert "".join([piece async for piece in chat.astream(QUESTIONS[1])]) == "三角"
        assert len(chat.turns) == 2
        with pytest.raises(ImageError):
            await model.aask("x", images=[b"none"])
        cut = model.astream("x", **LONG)
        await cut.__anext__()
        await cut.aclose()
        with pytest.raises(CancelledError):
            _ = cut.answer

    asyncio.run(talk())


def test_cancelling_a_task_cancels_its_answer(model: AyaVision) -> None:
    async def talk() -> None:
        task = asyncio.create_task(model.aask("x", **LONG))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        started = time.perf_counter()
        assert (await model.aask(QUESTIONS[0], images=[SIX], max_tokens=9)).text == "2675"
        assert time.perf_counter() - started < 30

    asyncio.run(talk())


def test_the_loop_goes_on_while_the_model_works(model: AyaVision) -> None:
    async def talk() -> int:
        ticks = 0
        task = asyncio.create_task(model.aask("x", max_tokens=200, **LONG))
        while not task.done():
            await asyncio.sleep(0.002)
            ticks += 1
        return ticks

    assert asyncio.run(talk()) > 3


def test_a_conversation_in_dictionaries_computes_its_new_tokens_only(model: AyaVision) -> None:
    """A stateless client sends everything each time; what the model wrote before is recognised."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "image": PHOTO}, {"type": "text", "text": "Hello"}]}
    ]
    held = 0
    for question in QUESTIONS[:4]:
        reply = model.create_chat_completion(messages=messages, max_tokens=12)
        usage = reply["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == held
        held = usage["prompt_tokens"] + usage["completion_tokens"] - 1
        messages.append(reply["choices"][0]["message"])
        messages.append({"role": "user", "content": question})


def test_a_completion_streams_chunks_and_can_be_left(model: AyaVision) -> None:
    content = [{"type": "image", "image": SIX.read_bytes()}, {"type": "text", "text": QUESTIONS[0]}]
    messages = [{"role": "user", "content": content}]
    options: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "stream_options": {"include_usage": True}}
    chunks = list(model.create_chat_completion(messages=messages, stream=True, **options))
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert "".join(delta or "" for delta in deltas) == "2675"
    logprobs = [
        entry for chunk in chunks if chunk["choices"] and chunk["choices"][0].get("logprobs")
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]  # fmt: skip
    assert b"".join(bytes(entry["bytes"]) for entry in logprobs) == b"2675"
    assert all(len(entry["top_logprobs"]) == 2 for entry in logprobs)
    assert chunks[-1]["usage"]["completion_tokens"] > 0
    left = model.create_chat_completion(messages=[{"role": "user", "content": "x"}], stream=True, **LONG)
    next(left)
    del left
    assert model.ask(QUESTIONS[0], images=[SIX]).text == "2675"


def test_a_last_assistant_message_is_continued(model: AyaVision) -> None:
    """Wherever it was cut, an answer goes on as it did, and what is given back is the rest alone."""
    first: dict[str, Any] = {
        "role": "user",
        "content": [
            {"type": "image", "image": SIX.read_bytes()},
            {"type": "text", "text": "Describe the picture."},
        ],
    }
    answer = model.ask("Describe the picture.", images=[SIX], max_tokens=40)
    vocabulary = model._engine.decoder.vocabulary
    own = model._engine.text_ids(answer.text, answer.ids)
    assert own is not None
    assert len(own) > 3
    cuts = [count for count in range(len(own) + 1) if is_cut(vocabulary, own, count)]
    assert len(cuts) > 3
    for count in {*cuts[:: len(cuts) // 3], cuts[-1]}:
        begun = b"".join(map(vocabulary.piece, own[:count])).decode()
        messages = [first, {"role": "assistant", "content": begun}]
        reply = model.create_chat_completion(messages, max_tokens=40)
        assert begun + reply["choices"][0]["message"]["content"] == answer.text
        assert reply["usage"]["prompt_tokens"] == model.count_tokens(messages)
        assert reply["usage"]["prompt_tokens"] == answer.usage.prompt_tokens + 1 + count
        assert reply["usage"]["completion_tokens"] == len(answer.ids) - 1 - count


def is_cut(vocabulary: Any, ids: tuple[int, ...], count: int) -> bool:
    """Whether the text of so many tokens has just these tokens."""
    data = b"".join(map(vocabulary.piece, ids[:count]))
    with contextlib.suppress(UnicodeDecodeError):
        return bool(vocabulary.tokenize(data.decode()) == list(ids[:count]))
    return False


def test_stop_strings_and_forms_are_for_the_continuation_alone(model: AyaVision) -> None:
    messages = [{"role": "user", "content": "Yes or no?"}, {"role": "assistant", "content": "I say: no, "}]
    reply = model.create_chat_completion(messages, choices=["yes"], stop="no")
    assert reply["choices"][0]["message"]["content"] == "yes"
    streamed = list(model.create_chat_completion(messages, choices=["yes"], stop="no", stream=True))
    texts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in streamed if chunk["choices"]]
    assert "".join(texts) == "yes"


def test_what_was_continued_is_known_in_the_next_question(model: AyaVision) -> None:
    content = [{"type": "image", "image": PHOTO}, {"type": "text", "text": "Hello"}]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "The"},
    ]
    first = model.create_chat_completion(messages, max_tokens=5)
    again = model.create_chat_completion(messages, max_tokens=5)
    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    whole = "The" + first["choices"][0]["message"]["content"]
    following = [*messages[:1], {"role": "assistant", "content": whole}, {"role": "user", "content": "And?"}]
    usage = model.create_chat_completion(following, max_tokens=5)["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > usage["prompt_tokens_details"]["image_tokens"]
    with AyaVision.load(model.bundle.directory, cache=NO_CACHE) as fresh:
        assert fresh.create_chat_completion(messages, max_tokens=5)["choices"] == first["choices"]


def test_a_conversation_without_a_question_that_is_too_long_says_so(model: AyaVision) -> None:
    for role in ("system", "assistant"):
        for overflow in ("drop_oldest", "error"):
            with pytest.raises(ContextLengthError):
                model.create_chat_completion([{"role": role, "content": "a b " * 3000}], overflow=overflow)


def test_a_displaced_conversation_comes_back_however_its_answer_ended(model: AyaVision) -> None:
    """A stop string and a limit leave answers that differ from what the template writes of them."""
    for options in ({}, {"stop": ["5"]}, {"max_tokens": 20, **LONG}, {"max_tokens": 2}):
        cached = []
        for displaced in (False, True):
            chat, other = model.chat(), model.chat(system="Another one.")
            first = chat.ask(QUESTIONS[0], images=[SIX])
            chat.ask(QUESTIONS[0], **options)
            if displaced:
                other.ask("Hello", max_tokens=2)
            cached.append(chat.ask("And?", max_tokens=1).usage.cached_tokens)
            other.ask("Hello", max_tokens=2)
        assert cached[0] == cached[1] > first.usage.prompt_tokens, options


def test_saving_and_opening_one_conversation_does_not_cost_another_its_place(
    model: AyaVision, tmp_path: Path
) -> None:
    chat, other = model.chat(), model.chat(system="Another one.")
    other.ask("Hello", max_tokens=2)
    chat.ask(QUESTIONS[0], images=[SIX])
    held = chat.ask(QUESTIONS[1]).usage
    other.save(tmp_path / "other.ayachat")
    model.open_chat(tmp_path / "other.ayachat")
    usage = chat.ask("And?", max_tokens=1).usage
    assert usage.cached_tokens == held.prompt_tokens + held.completion_tokens - 1


def test_what_was_dropped_stays_dropped_for_a_while(wide_bundle: Path) -> None:
    """The oldest turns go in portions, so that the next questions go on behind what is known."""
    with AyaVision.load(wide_bundle, context=500, cache=NO_CACHE) as model:
        chat, known = model.chat(), []
        for number in range(60):
            usage = chat.ask(f"Question {number}?", max_tokens=12, overflow="drop_oldest").usage
            known.append(usage.cached_tokens > 50)
        assert usage.dropped_turns > 2
        assert known[2:].count(False) <= 10


def test_dropping_many_turns_is_quick_and_can_be_cancelled(model: AyaVision) -> None:
    chat = model.chat()
    chat._turns = tuple(Turn(f"Question {i}?", (), "word " * 10) for i in range(400))
    built: list[int] = []
    build = model._engine.prompts.build

    def counted(*arguments: Any, **options: Any) -> Any:
        built.append(1)
        return build(*arguments, **options)

    model._engine.prompts.build = counted  # type: ignore[method-assign]
    assert chat.ask("And?", max_tokens=1, overflow="drop_oldest").usage.dropped_turns > 300
    assert len(built) < 15


def test_an_opened_file_writes_no_special_token_into_the_prompt(model: AyaVision, tmp_path: Path) -> None:
    path, special = tmp_path / "c.ayachat", model.bundle.manifest.tokens.special
    chat = model.chat()
    chat.ask("Hello", max_tokens=2)
    piece_of = model._engine.decoder.vocabulary.piece
    for name in special:
        forged = Turn("Hi", (), name, (special[name],))
        chat._turns = (forged,)
        chat.save(path, state=False)
        assert piece_of(special[name]).decode() == name
        (turn,) = model.open_chat(path).turns
        assert turn.ids is None
    assert json.loads(zipfile.ZipFile(path).read("chat.json"))


def test_reading_many_images_can_be_cancelled(model: AyaVision) -> None:
    loaded: list[int] = []
    from ayaedge.engine import engine

    handles: list[Any] = []
    load = engine.load_rgb

    def load_and_cancel(image: Any, **more: Any) -> Any:
        loaded.append(1)
        handles[0].cancel()
        return load(image, **more)

    begun = threading.Event()
    blocker = model.submit("x", on_text=lambda _: begun.wait(5), max_tokens=3, **LONG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "load_rgb", load_and_cancel)
        handles.append(model.submit("x", images=[PHOTO] * 20))
        begun.set()
        with pytest.raises(CancelledError):
            handles[0].result(10)
    assert len(loaded) == 1
    assert blocker.result(10)


def test_editing_a_conversation_while_it_is_answered(model: AyaVision) -> None:
    chat = model.chat()
    chat.ask("One", max_tokens=2)
    for edit in (chat.clear, chat.undo):
        stream = chat.stream("Two", max_tokens=20, **LONG)
        next(stream)
        edit()
        assert stream.result().text
        assert chat.turns == ()
    chat.system = "Old."
    handle = chat.submit("x", max_tokens=1)
    chat.system = "New."
    with_old = handle.result().usage.prompt_tokens
    assert with_old == model.ask("x", system="Old.", max_tokens=1).usage.prompt_tokens


def test_another_task_may_close_a_stream_that_is_being_read(model: AyaVision) -> None:
    async def talk() -> None:
        stream = model.astream("x", **LONG)

        async def read() -> int:
            count = 0
            with contextlib.suppress(CancelledError):
                async for _ in stream:
                    count += 1
            return count

        reader = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        await asyncio.wait_for(stream.aclose(), 10)
        await asyncio.wait_for(reader, 10)

    asyncio.run(talk())


def test_a_failed_request_does_not_hold_its_images(model: AyaVision) -> None:
    image = PHOTO.copy()
    alive = weakref.ref(image)
    handle = model.submit("word " * 5000, images=[image])
    with pytest.raises(ContextLengthError) as caught:
        handle.result(30)
    model.ask("x", max_tokens=1)
    del image
    gc.collect()
    assert alive() is None
    assert caught.value.needed > 0
    for _ in range(3):
        with pytest.raises(ContextLengthError) as again:
            handle.result()
    assert len(again.traceback) <= len(caught.traceback) + 1


def test_a_stream_with_a_callback_can_still_be_dropped(model: AyaVision) -> None:
    ended: list[bool] = []
    stream = model.stream("x", **LONG)
    stream.add_done_callback(lambda handle: ended.append(handle.done()))
    next(stream)
    request = stream._request
    del stream
    with pytest.raises(CancelledError):
        request.result(10)


def test_waiting_calls_in_a_callback_are_refused_before_they_begin(model: AyaVision, tmp_path: Path) -> None:
    chat = model.chat()
    chat.ask("Hello", max_tokens=2)
    with pytest.raises(AyaEdgeError, match="cannot wait"):
        model.submit("x", on_text=lambda _: chat.save(tmp_path / "c.ayachat")).result(10)
    model.ask("x", max_tokens=1)
    assert not (tmp_path / "c.ayachat").exists()


def test_closing_frees_what_was_kept_for_conversations(wide_bundle: Path) -> None:
    model = AyaVision.load(wide_bundle, cache=CacheOptions(disk_bytes=0))
    chat, other = model.chat(), model.chat("Other.")
    for one in (chat, other, chat):
        one.ask("Hello there, how are you today?", images=[SIX], max_tokens=4)
    kept = model._engine.prefix
    assert kept._turns._arrays  # type: ignore[attr-defined]
    model.close()
    assert not kept._turns._arrays  # type: ignore[attr-defined]
    assert not kept._states._arrays  # type: ignore[attr-defined]
