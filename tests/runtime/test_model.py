from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from ayaedge import (
    NO_CACHE,
    Answer,
    AnswerStream,
    AyaEdgeError,
    AyaVision,
    BackendError,
    CancelledError,
    ClosedError,
    ContextLengthError,
    DecoderOptions,
    ImageError,
    InvalidOptionError,
    PromptError,
    VisionOptions,
)
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.sampling import Sampler, SamplingOptions
from ayaedge.text.text_stream import TextStream

SQUARE = Image.new("RGB", (100, 100), (200, 30, 40))
QUESTION = "What color is in the picture?"


def test_pieces_join_to_the_answer(demo_model: AyaVision) -> None:
    stream = demo_model.stream(QUESTION, images=[SQUARE])
    pieces = list(stream)
    assert "".join(pieces) == stream.answer.text
    assert stream.answer.stop_reason == "stop"
    assert all(pieces)


def test_usage_counts_what_happened(demo_model: AyaVision) -> None:
    answer = demo_model.ask(QUESTION, images=[SQUARE, SQUARE], max_tiles=1)
    tokens = demo_model.bundle.manifest.image_prompt.tokens_per_tile
    assert answer.usage.tiles == (1, 1)
    assert answer.usage.image_tokens == 2 * (1 * tokens + 2 + 3)  # markers and a tag of three tokens
    assert answer.usage.completion_tokens == len(answer.ids)
    assert answer.usage.prompt_tokens > answer.usage.image_tokens


def test_temperature_zero_always_gives_the_same_answer(demo_model: AyaVision) -> None:
    first = demo_model.ask(QUESTION, images=[SQUARE])
    assert all(demo_model.ask(QUESTION, images=[SQUARE]).ids == first.ids for _ in range(3))


def test_a_seed_makes_sampling_repeatable(demo_model: AyaVision) -> None:
    def draw(seed: int | None) -> tuple[int, ...]:
        return demo_model.ask("?", temperature=3.0, top_k=50, top_p=0.99, seed=seed, max_tokens=12).ids

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(5)}) > 1
    assert len({draw(None) for _ in range(5)}) > 1


def test_top_k_one_is_greedy(demo_model: AyaVision) -> None:
    greedy = demo_model.ask(QUESTION, images=[SQUARE]).ids
    assert demo_model.ask(QUESTION, images=[SQUARE], temperature=2.0, top_k=1, seed=3).ids == greedy


def test_max_tokens_ends_an_answer(demo_model: AyaVision) -> None:
    answer = demo_model.ask(QUESTION, images=[SQUARE], max_tokens=1)
    assert answer.stop_reason == "length"
    assert len(answer.ids) == 1


def test_no_hidden_token_is_shown(demo_model: AyaVision) -> None:
    answer = demo_model.ask(QUESTION, images=[SQUARE])
    hidden = set(demo_model.bundle.manifest.tokens.hidden)
    assert hidden & set(answer.ids)
    assert "<|" not in answer.text


def test_text_alone_works(demo_model: AyaVision) -> None:
    answer = demo_model.ask("Hello", max_tokens=5)
    assert answer.usage.image_tokens == 0
    assert answer.usage.tiles == ()


def test_one_image_need_not_be_in_a_list(demo_model: AyaVision) -> None:
    single: Any = SQUARE
    assert demo_model.ask(QUESTION, images=single).ids == demo_model.ask(QUESTION, images=[SQUARE]).ids


def test_a_prompt_that_does_not_fit_says_what_to_lower() -> None:
    with AyaVision.load(decoder=DecoderOptions(context_size=64)) as model:
        with pytest.raises(ContextLengthError, match=r"tokens and only 63 fit.*lower max_tiles") as caught:
            model.ask(QUESTION, images=[np.zeros((480, 640, 3), np.uint8)])
        assert caught.value.needed > caught.value.available == 63
        with pytest.raises(ContextLengthError, match="shorten the question"):
            model.ask("word " * 100)
        assert isinstance(model.ask("Hi", max_tokens=2), Answer)  # and the model still works


def test_an_answer_ends_where_the_context_ends() -> None:
    with AyaVision.load(decoder=DecoderOptions(context_size=64)) as model:
        answer = model.ask("Hi", temperature=50.0, seed=1)
        total = answer.usage.prompt_tokens + answer.usage.completion_tokens
        assert total == 64 if answer.stop_reason == "length" else total < 64


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"temperature": None}, {"top_p": 0.0},
        {"top_p": 1.5}, {"min_p": -0.1}, {"min_p": 1.1}, {"min_p": None},
        {"top_k": -1}, {"top_k": 1 << 32}, {"seed": -1}, {"seed": 1 << 32}, {"seed": 1.5},
        {"max_tokens": 0}, {"max_tokens": "3"}, {"max_tiles": 0}, {"max_tiles": 2.5},
    ],
)  # fmt: skip
def test_senseless_options_are_refused_at_once(demo_model: AyaVision, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        demo_model.stream("x", **options)


def test_a_bad_image_leaves_the_model_ready(demo_model: AyaVision) -> None:
    with pytest.raises(ImageError):
        demo_model.ask("x", images=[b"no image"])
    assert demo_model.ask(QUESTION, images=[SQUARE]).text


LONG: dict[str, Any] = {"temperature": 50.0, "seed": 1}
"""The small model then writes nonsense up to the end of its context."""


def test_an_unfinished_answer_can_be_closed(demo_model: AyaVision) -> None:
    stream = demo_model.stream("x", **LONG)
    next(stream)
    with pytest.raises(AyaEdgeError, match="not finished"):
        _ = stream.answer
    stream.close()
    with pytest.raises(CancelledError) as caught:
        _ = stream.answer
    assert caught.value.answer is not None
    assert caught.value.answer.stop_reason == "cancelled"
    assert demo_model.ask(QUESTION, images=[SQUARE]).text


def test_a_dropped_answer_is_cancelled(demo_model: AyaVision) -> None:
    stream = demo_model.stream("x", **LONG)
    next(stream)
    request = stream._request
    del stream
    with pytest.raises(CancelledError):
        request.result(timeout=10)


def test_the_next_question_waits_for_an_unfinished_answer(demo_model: AyaVision) -> None:
    stream = demo_model.stream("x", max_tokens=50, **LONG)
    next(stream)
    answer = demo_model.ask(QUESTION, images=[SQUARE])
    assert stream.done()
    assert answer.timings.queued > 0
    assert len(stream.answer.ids) == 50


def test_threads_wait_for_each_other(demo_model: AyaVision) -> None:
    expected = demo_model.ask(QUESTION, images=[SQUARE]).ids
    answers: list[Answer] = []
    threads = [
        threading.Thread(target=lambda: answers.append(demo_model.ask(QUESTION, images=[SQUARE])))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.ids for answer in answers] == [expected] * 4


def test_a_closed_model_says_so() -> None:
    model = AyaVision.load()
    model.close()
    model.close()
    with pytest.raises(AyaEdgeError, match="closed"):
        model.ask(QUESTION, images=[SQUARE])


def test_a_closed_model_leaves_no_file_and_no_memory_to_garbage_collection() -> None:
    """A bundle that is still open cannot be removed on Windows, and nobody knows when garbage is collected."""
    AyaVision.load(cache=NO_CACHE).close()  # what is opened once is open now
    gc.collect()
    gc.disable()
    try:
        before = psutil.Process().num_fds() if os.name == "posix" else 0
        model = AyaVision.load(cache=NO_CACHE)
        engine = weakref.ref(model._engine)
        model.close()
        del model
        assert engine() is None
        assert (psutil.Process().num_fds() if os.name == "posix" else 0) == before
    finally:
        gc.enable()


def test_closing_while_another_thread_iterates_is_safe() -> None:
    for _ in range(5):
        model = AyaVision.load()
        stream = model.stream("hi", temperature=50.0, seed=1)
        next(stream)
        thread = threading.Thread(target=lambda s=stream: list(_until_error(s)))  # type: ignore[misc]
        thread.start()
        time.sleep(0.005)
        model.close()
        thread.join(10)
        assert not thread.is_alive()


def _until_error(stream: AnswerStream) -> Iterator[str]:
    with contextlib.suppress(AyaEdgeError):
        yield from stream


def test_one_stream_may_be_read_by_several_threads(demo_model: AyaVision) -> None:
    expected = demo_model.ask(QUESTION, images=[SQUARE]).text
    stream = demo_model.stream(QUESTION, images=[SQUARE])
    pieces: list[str] = []
    threads = [threading.Thread(target=lambda: pieces.extend(stream)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.answer.text == expected
    assert sorted("".join(pieces)) == sorted(expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_model_says_that_it_does_not_survive_a_fork() -> None:
    code = (
        "import os, ayaedge\nm = ayaedge.AyaVision.load(); m.ask('hi', max_tokens=1)\n"
        "if os.fork() == 0:\n"
        "    try: m.ask('hi')\n"
        "    except ayaedge.AyaEdgeError as error: os.write(1, str(error).encode())\n"
        "    os._exit(0)\n"
        "os.wait()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert "before the process forked" in result.stdout


@pytest.mark.parametrize("question", [None, 5, b"bytes"])
def test_a_question_must_be_text(demo_model: AyaVision, question: Any) -> None:
    with pytest.raises(PromptError, match="must be a string"):
        demo_model.ask(question)


@pytest.mark.parametrize("images", [None, (), iter(())])
def test_no_images_may_be_said_in_several_ways(demo_model: AyaVision, images: Any) -> None:
    assert demo_model.ask("Hi", images=images, max_tokens=1).usage.tiles == ()


def test_images_may_come_from_a_generator(demo_model: AyaVision) -> None:
    images = (SQUARE for _ in range(2))
    assert len(demo_model.ask("Hi", images=images, max_tokens=1).usage.tiles) == 2


def test_the_vocabulary_refuses_ids_that_it_does_not_have(demo_model: AyaVision) -> None:
    vocabulary = demo_model._engine.decoder.vocabulary
    for token in (-1, vocabulary.size, 10**9):
        for look_up in (vocabulary.text, vocabulary.piece):
            with pytest.raises(BackendError, match="token ids must lie"):
                look_up(token)


def test_closing_ends_an_unfinished_answer_of_the_same_thread() -> None:
    with AyaVision.load() as model:
        stream = model.stream("x", **LONG)
        next(stream)
    with pytest.raises(ClosedError, match="closed"):
        list(stream)


def decoder_of(model: AyaVision, *, context_size: int = 96, batch_size: int = 32) -> Decoder:
    options = DecoderOptions(context_size=context_size, batch_size=batch_size)
    return Decoder(model.bundle.decoder_path, model.bundle.manifest, options)


def test_misuse_that_would_abort_the_process_is_an_error(demo_model: AyaVision) -> None:
    hidden = demo_model.bundle.manifest.decoder.hidden_size
    with decoder_of(demo_model) as decoder, Sampler(SamplingOptions()) as sampler:
        with pytest.raises(AyaEdgeError, match="before the first token"):
            sampler.sample(decoder)
        with pytest.raises(BackendError, match="before the first token"):
            decoder.logits()
        with pytest.raises(BackendError, match="97 more tokens do not fit"):
            decoder.decode_tokens([1] * 97)
        for token in (-1, demo_model.bundle.manifest.decoder.vocab_size):
            with pytest.raises(BackendError, match="token ids must lie"):
                decoder.decode_tokens([token])
        with pytest.raises(BackendError, match="finite"):
            decoder.decode_embeddings(np.full((1, hidden), np.nan, np.float32))
        with pytest.raises(BackendError, match="shape"):
            decoder.decode_embeddings(np.zeros((1, hidden + 1), np.float32))
        decoder.decode_tokens([5] * 96)  # three batches
        assert decoder.position == 96
        assert np.isfinite(decoder.logits()).all()


def test_a_context_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="context size must lie between 2 and"):
        AyaVision.load(decoder=DecoderOptions(context_size=1 << 20))


@pytest.mark.parametrize(
    "options",
    [
        {"context_size": 0}, {"context_size": 1.5}, {"threads": 0}, {"threads": 100_000}, {"batch_size": -1},
        {"cache_type": "q9_0"}, {"gpu_layers": -2}, {"device": "tpu"}, {"draft_tokens": 64}, {"ubatch_size": 0},
        {"cache_type_v": "q8_0", "flash_attention": False}, {"threads_batch": 0},
    ],
)  # fmt: skip
def test_senseless_decoder_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        DecoderOptions(**options)


@pytest.mark.parametrize("options", [{"threads": -1}, {"device": "tpu"}])
def test_senseless_vision_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        VisionOptions(**options)


def test_layers_on_a_gpu_that_is_not_there_are_an_error() -> None:
    from ayaedge import llama

    if llama.library().llama_supports_gpu_offload():
        pytest.skip("this build of llama-cpp-python has a GPU")
    with pytest.raises(InvalidOptionError, match="sees no"):
        AyaVision.load(decoder=DecoderOptions(gpu_layers=99))


def test_tokens_and_their_embeddings_are_the_same_to_the_decoder(demo_model: AyaVision) -> None:
    ids = [5, 300, 301, 302, 900]
    with decoder_of(demo_model) as decoder:
        decoder.decode_tokens(ids)
        by_token = decoder.logits()
        decoder.clear()
        decoder.decode_embeddings(decoder.embed(ids))
        np.testing.assert_array_equal(decoder.logits(), by_token)


TEXTS = ["naïve café", "日本語のテキスト", "한국어", "हिन्दी में लिखा", "👩‍👩‍👧‍👦 🏳️‍🌈", "עברית", "ខ្មែរ", "𝔘𝔫𝔦"]


@pytest.mark.parametrize("text", TEXTS)
def test_no_character_is_broken_in_the_stream(demo_model: AyaVision, text: str) -> None:
    vocabulary = demo_model._engine.decoder.vocabulary
    ids = vocabulary.tokenize(text)
    stream = TextStream(vocabulary.piece)
    pieces = [stream.push(token) or "" for token in ids]
    assert "".join(pieces) + (stream.finish() or "") == text
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_character_cut_off_at_the_end_is_marked(demo_model: AyaVision) -> None:
    vocabulary = demo_model._engine.decoder.vocabulary
    ids = vocabulary.tokenize("👩")
    assert len(ids) > 1
    stream = TextStream(vocabulary.piece)
    assert not any(stream.push(token) for token in ids[:-1])
    assert stream.finish() == "\ufffd"


def test_the_kv_cache_grows_on_demand_and_keeps_what_was_decoded(demo_model: AyaVision) -> None:
    ids = [5 + i % 90 for i in range(1500)]
    large = {"context_size": 2048, "batch_size": 512}
    with decoder_of(demo_model, **large) as growing, decoder_of(demo_model, **large) as roomy:
        roomy.reserve(2000)
        sizes = []
        for start in range(0, len(ids), 300):
            for decoder in (growing, roomy):
                decoder.decode_tokens(ids[start : start + 300])
            sizes.append(growing._capacity)
            np.testing.assert_allclose(growing.logits(), roomy.logits(), rtol=0, atol=5e-2)
        assert sizes == [512] + 4 * [2048]  # beyond the window all at once
        growing.reserve(100_000)
        assert growing._capacity == growing.context_size
    with decoder_of(demo_model, **large) as growing, decoder_of(demo_model, **large) as roomy:
        for decoder in (growing, roomy):
            decoder.decode_tokens(ids[:50])
        growing.reserve(600)
        with pytest.raises(BackendError, match="no logits"):
            growing.logits()
        with pytest.raises(AyaEdgeError, match="nothing to sample"), Sampler(SamplingOptions()) as sampler:
            sampler.sample(growing)
        growing.decode_tokens([7])
        roomy.decode_tokens([7])
        np.testing.assert_allclose(growing.logits(), roomy.logits(), rtol=0, atol=5e-2)


def test_memory_that_cannot_be_had_leaves_a_decoder_that_works(
    demo_model: AyaVision, monkeypatch: pytest.MonkeyPatch
) -> None:
    with decoder_of(demo_model, context_size=2048) as decoder:
        decoder.decode_tokens([5, 6])
        make = Decoder._make_context

        def cramped(self: Decoder) -> Any:
            if self._capacity > 1024:
                raise BackendError("no memory")
            return make(self)

        monkeypatch.setattr(Decoder, "_make_context", cramped)
        with pytest.raises(BackendError, match="no memory"):
            decoder.reserve(1500)
        assert decoder.position == 0
        decoder.decode_tokens([5, 6])
        assert decoder.logits().shape
