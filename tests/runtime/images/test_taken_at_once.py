"""Images are what they were when the question was asked, whatever their owner does before it is answered."""

from __future__ import annotations

import asyncio
import gc
import io
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ayaedge import AyaVision, ImageError

SIX = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
QUESTION = "What number is at the bottom left?"
ANSWER = "2675"


@contextmanager
def busy(model: AyaVision) -> Iterator[Callable[[], None]]:
    """A model that works for somebody else until the end, or until the function that this gives is called."""
    begun, go = threading.Event(), threading.Event()

    def on_text(_: object) -> None:
        begun.set()
        go.wait(60)

    handle = model.submit("x", max_tokens=2, on_text=on_text)
    assert begun.wait(60)
    try:
        yield go.set
    finally:
        go.set()
        handle.result(60)


def wait_until_one_waits(model: AyaVision) -> None:
    while not model._service._worker._queue:
        time.sleep(0.001)


def completion(image: Any) -> dict[str, Any]:
    content = [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]
    return {"messages": [{"role": "user", "content": content}], "local_files": SIX.parent}


def text_of(reply: Any) -> str:
    return str(reply["choices"][0]["message"]["content"])


async def pieces(stream: Any) -> str:
    return "".join([piece async for piece in stream])


def streamed(chunks: Any) -> str:
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    return "".join(delta.get("content", "") for delta in deltas)


WAYS: dict[str, tuple[Callable[[AyaVision, Any], Any], Callable[[Any], str]]] = {
    "submit": (lambda m, p: m.submit(QUESTION, images=[p]), lambda h: h.result(60).text),
    "submit one": (lambda m, p: m.submit(QUESTION, images=p), lambda h: h.result(60).text),
    "stream": (lambda m, p: m.stream(QUESTION, images=[p]), "".join),
    "astream": (lambda m, p: m.astream(QUESTION, images=[p]), lambda s: asyncio.run(pieces(s))),
    "aask": (lambda m, p: m.aask(QUESTION, images=[p]), lambda c: asyncio.run(c).text),
    "chat.submit": (lambda m, p: m.chat().submit(QUESTION, images=[p]), lambda h: h.result(60).text),
    "chat.stream": (lambda m, p: m.chat().stream(QUESTION, images=[p]), "".join),
    "chat.astream": (lambda m, p: m.chat().astream(QUESTION, images=[p]), lambda s: asyncio.run(pieces(s))),
    "chat.aask": (lambda m, p: m.chat().aask(QUESTION, images=[p]), lambda c: asyncio.run(c).text),
    "completion": (lambda m, p: m.create_chat_completion(**completion(p), stream=True), streamed),
}
"""What returns before there is an answer, and how its text is had."""
WAITING_WAYS: dict[str, Callable[[AyaVision, Any], str]] = {
    "ask": lambda m, p: m.ask(QUESTION, images=[p]).text,
    "chat.ask": lambda m, p: m.chat().ask(QUESTION, images=[p]).text,
    "encode_image": lambda m, p: m.ask(QUESTION, images=[m.encode_image(p)]).text,
    "completion": lambda m, p: text_of(m.create_chat_completion(**completion(p))),
}


def pixels() -> np.ndarray:
    return np.array(Image.open(SIX).convert("RGB"))


@pytest.mark.parametrize("way", WAYS)
def test_an_array_that_is_overwritten_afterwards_was_taken_before(demo_model: AyaVision, way: str) -> None:
    ask, text = WAYS[way]
    frame = pixels()
    with busy(demo_model):
        asked = ask(demo_model, frame)
        frame[:] = 0
    assert text(asked) == ANSWER


@pytest.mark.parametrize("way", WAYS)
def test_a_pil_image_may_be_closed_afterwards(demo_model: AyaVision, way: str) -> None:
    ask, text = WAYS[way]
    with busy(demo_model), Image.open(SIX) as image:
        asked = ask(demo_model, image)
    assert text(asked) == ANSWER


@pytest.mark.parametrize("way", WAYS)
def test_buffers_and_open_files_may_be_used_again_afterwards(demo_model: AyaVision, way: str) -> None:
    ask, text = WAYS[way]
    buffer, stream = bytearray(SIX.read_bytes()), io.BytesIO(SIX.read_bytes())
    with busy(demo_model), SIX.open("rb") as file:
        asked = [ask(demo_model, given) for given in (buffer, stream, file)]
        buffer[:] = bytes(len(buffer))
        stream.truncate(0)
        stream.close()
    assert [text(one) for one in asked] == [ANSWER] * 3


@pytest.mark.parametrize("way", WAITING_WAYS)
def test_while_somebody_waits_for_an_answer_another_thread_may_overwrite_the_frame(
    demo_model: AyaVision, way: str
) -> None:
    frame, answers = pixels(), []
    asking = threading.Thread(target=lambda: answers.append(WAITING_WAYS[way](demo_model, frame)))
    with busy(demo_model):
        asking.start()
        wait_until_one_waits(demo_model)
        frame[:] = 0
    asking.join(60)
    assert answers == [ANSWER]


def test_a_named_file_is_the_one_of_the_directory_in_which_it_was_named(
    demo_model: AyaVision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(SIX.parent)
    with busy(demo_model):
        handles = [demo_model.submit(QUESTION, images=[named]) for named in (SIX.name, Path(SIX.name))]
        monkeypatch.chdir(tmp_path)
        missing = demo_model.submit(QUESTION, images=["no.png"])
    assert [handle.result(60).text for handle in handles] == [ANSWER] * 2
    with pytest.raises(ImageError, match=r"no image at no\.png"):
        missing.result(60)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["PIL", "array", "open file"])
def test_what_is_no_image_is_said_where_it_is_given(demo_model: AyaVision, way: str, kind: str) -> None:
    broken = SIX.read_bytes()[:-1000]
    image: Any = {
        "PIL": lambda: Image.open(io.BytesIO(broken)),
        "array": lambda: np.zeros((3, 3), np.float64),
        "open file": lambda: io.StringIO("text"),
    }[kind]()
    with pytest.raises(ImageError):
        WAYS[way][0](demo_model, image)


def test_counting_takes_every_kind_of_image(demo_model: AyaVision) -> None:
    counts = set()
    with Image.open(SIX) as opened, SIX.open("rb") as file:
        for image in (
            SIX,
            str(SIX),
            SIX.as_uri(),
            SIX.read_bytes(),
            opened,
            file,
            io.BytesIO(SIX.read_bytes()),
            pixels(),
        ):
            counts.add(demo_model.count_tokens(**completion(image)))
    assert len(counts) == 1


def test_a_url_of_a_file_is_an_image_everywhere(demo_model: AyaVision) -> None:
    url = SIX.as_uri()
    assert demo_model.ask(QUESTION, images=url).text == ANSWER
    assert demo_model.chat().ask(QUESTION, images=[url]).text == ANSWER
    assert text_of(demo_model.create_chat_completion(**completion(url))) == ANSWER
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    assert text_of(demo_model.create_chat_completion(messages, local_files=SIX.parent)) == ANSWER


@pytest.mark.parametrize("way", ["submit", "aask", "chat.aask"])
def test_an_image_that_was_taken_goes_with_its_request(demo_model: AyaVision, way: str) -> None:
    """An error that somebody keeps keeps no images."""
    taken: list[weakref.ref[Any]] = []
    from ayaedge import conversation

    def note(image: Any) -> Any:
        found = take(image)
        taken.append(weakref.ref(found))
        return found

    with pytest.MonkeyPatch.context() as patch:
        take = conversation.take_image
        patch.setattr(conversation, "take_image", note)
        call = {"submit": demo_model.submit, "aask": demo_model.aask, "chat.aask": demo_model.chat().aask}[
            way
        ]
        asked: Any = call("word " * 20_000, images=[pixels()])
    with pytest.raises(ValueError, match="fit") as caught:
        asyncio.run(asked) if way != "submit" else asked.result(60)
    demo_model.ask("x", max_tokens=1)
    gc.collect()
    assert [reference() for reference in taken] == [None]
    assert caught.value
