"""The next image is encoded while others are answered: what is computed when, and rows that are the same with it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ayaedge import NO_CACHE, AyaVision, BatchItem, BatchRow, CancelledError, ClosedError, ImageError
from ayaedge.decoder.decoder import Decoder
from ayaedge.engine.ahead import Ahead
from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.engine import Engine
from ayaedge.engine.generation import AnswerWriter
from ayaedge.engine.interface import Question
from ayaedge.engine.joint import JointAnswers
from ayaedge.engine.streams import AnswerRequest
from ayaedge.engine.worker import Request
from ayaedge.errors import OutOfMemoryError
from ayaedge.options import answer_options
from ayaedge.text.prompt import Message
from ayaedge.vision.encoder import VisionEncoder
from served import CELLS, ENDLESS, HEART, PATIENCE, QUESTION
from slow_graph import with_graph

NUMBER = CELLS.with_name("one-number.png")
ITEMS = [
    BatchItem(CELLS, QUESTION), BatchItem(HEART, "What is this?"), BatchItem(HEART, "Describe the picture."),
    BatchItem(NUMBER, "Which number?"), BatchItem(CELLS, "Describe the picture."),
]  # fmt: skip
AHEAD = "ayaedge ahead"
"""The thread that encodes ahead."""


@pytest.fixture(scope="module")
def model() -> Iterator[AyaVision]:
    """The demonstration model, without embeddings of what was seen before."""
    with AyaVision.load(cache=NO_CACHE) as model:
        yield model


class Steps:
    """What was done, in its order: `tile 1` is encoded, `token 1` of the first answer is there."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.threads: list[str] = []
        """That have encoded the tiles."""
        self.before: dict[str, Callable[[], object]] = {}
        """What must be, before a step is made."""
        self._lock = threading.Condition()

    def note(self, step: str) -> None:
        with self._lock:
            self.done.append(step)
            self._lock.notify_all()

    def until(self, step: str) -> None:
        with self._lock:
            assert self._lock.wait_for(lambda: step in self.done, PATIENCE), f"no {step}: {self.done}"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    found, run, take = Steps(), VisionEncoder.run, AnswerWriter.take
    answers: list[AnswerRequest] = []

    def watched_run(self: VisionEncoder, pixels: Any) -> Any:
        found.threads.append(threading.current_thread().name)
        name = f"tile {len(found.threads)}"
        found.before.get(name, list)()
        embeddings = run(self, pixels)
        found.note(name)
        return embeddings

    def watched_take(self: AnswerWriter, token: int, place: Any) -> bool:
        if self.request not in answers:
            answers.append(self.request)
        name = f"token {answers.index(self.request) + 1}"
        if name in found.done:
            found.before.get(name, list)()
        goes_on = take(self, token, place)
        found.note(name)
        return goes_on

    monkeypatch.setattr(VisionEncoder, "run", watched_run)
    monkeypatch.setattr(AnswerWriter, "take", watched_take)
    return found


def ask(joint: JointAnswers, image: Any = CELLS, **options: Any) -> AnswerRequest:
    dialogue = Dialogue((Message("user", "Describe the picture.", 1),), (image,))
    return joint.ask(dialogue, answer_options(**{"max_tokens": 8, "max_tiles": 1, **options}))


def ask_all(joint: JointAnswers, steps: Steps, images: list[Any], **options: Any) -> list[AnswerRequest]:
    """Questions that all wait before the first of them begins."""
    asked = threading.Event()
    steps.before["tile 1"] = lambda: asked.wait(PATIENCE)
    requests = [ask(joint, image, **options) for image in images]
    asked.set()
    return requests


@pytest.mark.parametrize("most", [1, 2])
def test_the_next_image_is_encoded_between_the_first_and_the_last_token_of_an_answer(
    most: int, model: AyaVision, steps: Steps
) -> None:
    images = [CELLS, HEART, NUMBER][: most + 1]
    steps.before[f"tile {most + 1}"] = lambda: steps.until("token 1")
    steps.before["token 1"] = lambda: steps.until(f"tile {most + 1}")
    requests = ask_all(JointAnswers(model._service, most, ahead=True), steps, images)
    answers = [request.result(PATIENCE) for request in requests]
    tile = steps.done.index(f"tile {most + 1}")
    first, *_, last = (place for place, step in enumerate(steps.done) if step == "token 1")
    assert first < tile < last
    assert steps.threads[most] == AHEAD
    steps.before.clear()
    expected = [
        model.ask("Describe the picture.", images=image, max_tokens=8, max_tiles=1) for image in images
    ]
    assert [answer.ids for answer in answers] == [answer.ids for answer in expected]


def test_by_default_that_is_where_the_halves_run_on_different_devices(
    model: AyaVision, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model._engine
    assert isinstance(engine, Engine)
    on_gpu: Any = object()
    for device, layers, apart in (None, 0, False), (on_gpu, 0, True), (None, 5, True), (on_gpu, 5, False):
        with monkeypatch.context() as patch:
            patch.setattr(engine.vision, "device", device)
            patch.setattr(Decoder, "gpu_layers", layers)
            assert engine.encodes_ahead == apart
    for apart in (False, True):
        monkeypatch.setattr(Engine, "encodes_ahead", apart)
        for chosen in (None, True, False):
            steps.threads.clear()
            joint = JointAnswers(model._service, 1, chosen)
            for request in ask_all(joint, steps, [CELLS, HEART], max_tokens=2):
                request.result(PATIENCE)
            assert (AHEAD in steps.threads) == (apart if chosen is None else chosen)


def facts(row: BatchRow) -> dict[str, Any]:
    return {**row.to_dict(), "seconds": None}


@pytest.mark.parametrize("most", [1, 3])
def test_rows_are_the_same_and_no_image_is_encoded_in_vain(
    most: int, model: AyaVision, steps: Steps, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"x")
    items = [*ITEMS[:3], BatchItem(tmp_path / "broken.png", "?"), *ITEMS[3:]]
    found = []
    for ahead in (False, True):
        model.ask("And you?", max_tokens=1)  # so that no image is known any more
        steps.threads.clear()
        rows = list(model.batch(items, parallel=most, ahead=ahead, max_tokens=12))
        found.append((list(map(facts, rows)), len(steps.threads)))
    assert found[0] == found[1]
    errors = [row.get("error") or "" for row in found[0][0]]
    assert [error.partition(":")[0] for error in errors] == ["", "", "", "ImageError", "", ""]


def test_a_question_that_is_cancelled_while_it_is_encoded_ends_at_once_and_the_others_are_right(
    model: AyaVision, steps: Steps
) -> None:
    begun, end = threading.Event(), threading.Event()

    def inside() -> None:
        begun.set()
        end.wait(PATIENCE)

    steps.before["tile 2"] = inside
    joint = JointAnswers(model._service, 1, ahead=True)
    endless, cancelled = ask_all(joint, steps, [CELLS, HEART], **ENDLESS)
    last = ask(joint, NUMBER)
    assert begun.wait(PATIENCE)
    cancelled.cancel()
    assert isinstance(cancelled.exception(PATIENCE), CancelledError)
    assert not endless.over
    end.set()
    endless.cancel()
    answer = last.result(PATIENCE)
    assert "tile 2" not in steps.done
    assert answer.ids == model.ask("Describe the picture.", images=NUMBER, max_tokens=8, max_tiles=1).ids


def test_closing_the_model_ends_the_tile_that_is_encoded_ahead(tmp_path: Path, steps: Steps) -> None:
    begun = threading.Event()
    with AyaVision.load(with_graph(tmp_path / "b"), cache=NO_CACHE) as model:
        steps.threads.clear()  # of warming up
        steps.done.clear()
        steps.before["tile 2"] = begun.set
        images = [np.full((8, 8, 3), value, np.uint8) for value in (50, 90)]
        requests = ask_all(JointAnswers(model._service, 1, ahead=True), steps, images, **ENDLESS)
        assert begun.wait(PATIENCE)
        model.close()
    assert [type(request.exception(PATIENCE)) for request in requests] == [ClosedError] * 2
    assert steps.threads[1] == AHEAD
    assert "tile 2" not in steps.done


def test_what_is_encoded_stays_while_others_have_their_turn(model: AyaVision, steps: Steps) -> None:
    joint, other = (JointAnswers(model._service, 1, ahead=True) for _ in range(2))
    between: list[AnswerRequest] = []

    def ask_others() -> None:
        steps.until("tile 2")
        if not between:
            between.extend([ask(other, NUMBER), ask(other, np.zeros((8, 8), np.uint8))])

    steps.before["token 1"] = ask_others
    for request in ask_all(joint, steps, [CELLS, HEART]):
        request.result(PATIENCE)
    for request in between:
        request.result(PATIENCE)
    assert len(steps.threads) == 4
    order = [step for number, step in enumerate(steps.done) if step not in steps.done[:number]]
    assert order.index("tile 2") < order.index("tile 3") < order.index("token 3")


def question() -> Question:
    return Question(Request(), Dialogue((), ()), answer_options())


def test_one_question_at_a_time_is_worked_for_ahead() -> None:
    begun: list[Question] = []
    asked = [question() for _ in range(4)]

    def encode(one: Question) -> Question:
        begun.append(one)
        if one is asked[1]:
            raise ImageError("no image")
        if one is asked[2]:
            raise OutOfMemoryError("there is not memory enough")
        return question()

    ahead = Ahead()
    for one in asked:
        ahead.begin(one, encode)
    assert ahead.take(asked[3]) is asked[3]
    assert ahead.take(asked[0]) is not asked[0]
    assert begun == asked[:1]
    ahead.begin(asked[1], encode)
    with pytest.raises(ImageError):
        ahead.take(asked[1])
    ahead.begin(asked[2], encode)
    assert ahead.take(asked[2]) is asked[2]  # in its turn there may be
    ahead.begin(asked[0], encode)
    asked[0].request.cancel()
    ahead.wait()
    ahead.begin(asked[3], encode)
    assert ahead.take(asked[3]) is not asked[3]
    assert begun == [asked[0], asked[1], asked[2], asked[0], asked[3]]


def test_a_machine_is_not_measured_while_the_decoder_works(model: AyaVision) -> None:
    engine = model._engine
    assert isinstance(engine, Engine)
    assert engine._profile is None
    asked = Question(Request(), Dialogue((), (CELLS,)), answer_options(tiles="auto"))
    assert engine._encode_ahead(asked) is asked
