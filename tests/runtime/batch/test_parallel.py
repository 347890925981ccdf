"""Several answers at once: the rows are those of one by one, and what happens to one row happens to it alone."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ayaedge import (
    NO_CACHE,
    AyaVision,
    BackendError,
    BatchItem,
    BatchRow,
    CancelledError,
    ClosedError,
    InvalidOptionError,
    OutOfMemoryError,
)
from ayaedge.decoder.lanes import Lane, Lanes
from ayaedge.engine import together
from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.engine import Engine
from ayaedge.engine.joint import JointAnswers
from ayaedge.engine.streams import AnswerRequest
from ayaedge.hardware.machine import Memory
from ayaedge.options import answer_options
from ayaedge.planning.parallel_plan import kv_bytes, lanes_within
from ayaedge.text.prompt import Message
from served import CELLS, ENDLESS, HEART, PATIENCE, QUESTION, data_url, until

NUMBER = CELLS.with_name("one-number.png")
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": {
    "type": "object", "additionalProperties": False, "required": ["the_color_of_it", "is_certain"],
    "properties": {"the_color_of_it": {"enum": ["red", "green"]}, "is_certain": {"type": "boolean"}},
}}}  # fmt: skip
ITEMS = [
    BatchItem(CELLS, QUESTION), BatchItem(HEART, "What is this?"), BatchItem(NUMBER, "Which number?"),
    BatchItem(CELLS, "Describe the picture."), BatchItem(HEART, "Describe the picture in French."),
    BatchItem(NUMBER, "And now?"), BatchItem(CELLS, "What color is at the top?"),
]  # fmt: skip
"""Their answers have one to thirty tokens, so that they end at different times."""


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many lanes each step was."""
    found: list[int] = []
    decode = Lanes.decode

    def watched(self: Lanes, tokens: Any) -> None:
        found.append(len({lane for lane, _ in tokens}))
        decode(self, tokens)

    monkeypatch.setattr(Lanes, "decode", watched)
    return found


def facts(row: BatchRow) -> dict[str, Any]:
    """What is the same however it was computed."""
    usage = {name: count for name, count in (row.usage or {}).items() if name != "cached_tokens"}
    return {**row.to_dict(), "usage": usage, "seconds": None}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 1},
        {"stop": ["a", "e"], "max_tokens": 12},
        {"response_format": FORM, "max_tokens": 80},
        {"choices": ["red", "a red heart", "2675"]},
        {"temperature": 0.9, "seed": 3, "top_k": 40, "top_p": 0.95, "max_tokens": 12},
    ],
    ids=["plain", "one token", "stop", "schema", "choices", "drawn"],
)
def test_rows_side_by_side_are_those_of_one_by_one(
    options: dict[str, Any], demo_model: AyaVision, widths: list[int]
) -> None:
    options = {"max_tokens": 24, **options}
    alone = list(demo_model.batch(ITEMS, parallel=1, **options))
    assert not widths
    beside = list(demo_model.batch(ITEMS, parallel=3, **options))
    assert list(map(facts, beside)) == list(map(facts, alone))
    assert [row.error for row in beside] == [None] * len(ITEMS)
    assert widths == [] if options["max_tokens"] == 1 else max(widths) == 3


def test_prompts_are_computed_as_alone_and_their_common_beginning_once(
    demo_model: AyaVision, computed: list[int]
) -> None:
    system = "You are a careful assistant. " * 8
    rows = list(demo_model.batch(ITEMS[:4], system=system, parallel=4, max_tokens=4))
    before = sum(computed)
    computed.clear()
    again = list(demo_model.batch(ITEMS[:4], system=system, parallel=4, max_tokens=4))
    assert list(map(facts, again)) == list(map(facts, rows))
    assert sum(computed) < before
    assert all(row.usage["cached_tokens"] > 0 for row in again)


def test_requests_in_openais_form_are_answered_side_by_side_too(
    demo_model: AyaVision, widths: list[int]
) -> None:
    def request(image: Path, text: str) -> BatchItem:
        content = [
            {"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": text}
        ]  # fmt: skip
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "model": "mine"}
        return BatchItem(custom_id=text, request=body)

    items = [request(CELLS, QUESTION), request(HEART, "What is this?"), request(CELLS, "")]
    one, two = (list(demo_model.batch(items, parallel=count, max_error_rate=1)) for count in (1, 2))
    assert [row.answer for row in one] == [row.answer for row in two]
    assert two[0].answer == "2675"
    assert two[0].completion["model"] == "mine"
    assert 2 in widths


def test_an_image_that_cannot_be_read_is_one_row(demo_model: AyaVision, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"x")
    items = [ITEMS[0], BatchItem(tmp_path / "broken.png"), ITEMS[1], ITEMS[2]]
    rows = list(demo_model.batch(items, "?", parallel=2, max_tokens=6))
    assert [row.error is None for row in rows] == [True, False, True, True]
    assert "ImageError" in str(rows[1].error)


def test_a_row_whose_numbers_are_of_no_use_fails_alone_and_is_tried_again(
    demo_model: AyaVision, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [row.answer for row in demo_model.batch(ITEMS, parallel=1, max_tokens=12)]
    likeliest, failing = Lane.likeliest, [7]

    def damaged(self: Lane) -> list[int]:
        failing[0] -= 1
        if failing[0] == 0:
            raise BackendError("the decoder's logits are of no use")
        return likeliest(self)

    monkeypatch.setattr(Lane, "likeliest", damaged)
    rows = list(demo_model.batch(ITEMS, parallel=3, max_tokens=12))
    assert [row.answer for row in rows] == expected
    assert sorted(row.attempts for row in rows) == [1] * 6 + [2]


def test_a_step_that_fails_fails_its_rows_which_are_tried_again(
    demo_model: AyaVision, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [row.answer for row in demo_model.batch(ITEMS, parallel=1, max_tokens=12)]
    decode, steps = Lanes.decode, []

    def damaged(self: Lanes, tokens: Any) -> None:
        steps.append(len(tokens))
        if len(steps) == 3:
            raise BackendError("llama.cpp could not decode")
        decode(self, tokens)

    monkeypatch.setattr(Lanes, "decode", damaged)
    rows = list(demo_model.batch(ITEMS, parallel=3, max_tokens=12))
    assert [row.answer for row in rows] == expected
    assert sum(row.attempts - 1 for row in rows) == steps[2]


def requested(number: int, **options: Any) -> BatchItem:
    """A request in OpenAI's form, with options of its own."""
    body = {"messages": [{"role": "user", "content": f"Tell me {number}."}], **options}
    return BatchItem(custom_id=str(number), request=body)


def test_dropping_a_batch_cancels_what_is_being_answered(demo_model: AyaVision, widths: list[int]) -> None:
    items = [requested(0, max_tokens=3), *(requested(number, **ENDLESS) for number in range(1, 6))]
    rows = demo_model.batch(items, parallel=3)
    assert next(rows).error is None
    until(lambda: 3 in widths)
    rows.close()
    assert demo_model.ask(QUESTION, images=CELLS, max_tokens=6).text == "2675"


def ask(joint: JointAnswers, question: str, **options: Any) -> AnswerRequest:
    return joint.ask(Dialogue((Message("user", question, 1),), (CELLS,)), answer_options(**options))


def test_one_answer_is_cancelled_and_the_others_go_on(demo_model: AyaVision, widths: list[int]) -> None:
    joint = JointAnswers(demo_model._service, 2)
    endless, waiting = (ask(joint, QUESTION, **ENDLESS) for _ in range(2))
    last = ask(joint, QUESTION, max_tokens=6, top_logprobs=2)
    until(lambda: 2 in widths)
    assert endless.next_item()
    waiting.cancel()
    answer = last.result(PATIENCE)
    alone = demo_model.submit(QUESTION, images=CELLS, max_tokens=6, top_logprobs=2)
    endless.cancel()
    error = endless.exception(PATIENCE)
    assert isinstance(error, CancelledError)
    assert error.answer is not None
    assert error.answer.text.isalpha()
    assert isinstance(waiting.exception(PATIENCE), CancelledError)
    expected = alone.result(PATIENCE)
    assert (answer.text, answer.stop_reason) == (expected.text, expected.stop_reason)
    for one, other in zip(answer.logprobs, expected.logprobs, strict=True):
        assert (one.id, [top.id for top in one.top]) == (other.id, [top.id for top in other.top])
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_others_get_their_turn_while_a_batch_goes_on(demo_model: AyaVision) -> None:
    items = [requested(number, max_tokens=12) for number in range(40)]
    rows, done = demo_model.batch(items, parallel=2), []
    for _ in range(3):
        done.append(next(rows))
    other = demo_model.submit("And you?", max_tokens=2)
    for row in rows:
        done.append(row)
        if other.done():
            break
    assert other.result(PATIENCE).text
    assert len(done) < 20
    done += rows
    assert [row.custom_id for row in done] == [str(number) for number in range(40)]
    assert all(row.error is None for row in done)


def test_closing_the_model_ends_a_batch() -> None:
    with AyaVision.load(cache=NO_CACHE) as model:
        rows = model.batch(
            [requested(0, max_tokens=3), *(requested(n, **ENDLESS) for n in (1, 2, 3))], parallel=2
        )
        assert next(rows).error is None
        threading.Timer(0.2, model.close).start()
        with pytest.raises(ClosedError):
            list(rows)
        with pytest.raises(ClosedError):
            list(model.batch(ITEMS, parallel=2))


def test_where_memory_is_short_there_are_fewer_answers_at_once(
    demo_model: AyaVision,
    widths: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = demo_model._engine
    assert isinstance(engine, Engine)
    row = kv_bytes(engine.figures, engine.decoder.options, tokens=2048)
    for free, most in ((row, 0), (100 * row, 3)):
        widths.clear()
        monkeypatch.setattr(together, "memory", lambda free=free: Memory(free, free))
        rows = list(demo_model.batch(ITEMS[:4], parallel=3, max_tokens=5))
        assert [row.error for row in rows] == [None] * 4
        assert max(widths, default=0) == most
    assert "there is memory for 1 answers" in caplog.text


def test_caches_of_answers_that_end_together_are_not_moved(
    demo_model: AyaVision, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[int] = []
    monkeypatch.setattr(Lanes, "_put", lambda _lanes, _state, number: moved.append(number))
    rows = list(demo_model.batch([ITEMS[number] for number in (3, 4, 6)], parallel=3, max_tokens=2))
    assert [row.error for row in rows] == [None] * 3
    assert widths == [3]
    assert moved == []


def test_without_memory_to_try_lanes_answers_are_written_one_by_one(
    demo_model: AyaVision,
    widths: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*_: object) -> None:
        raise OutOfMemoryError("there is not memory enough")

    engine = demo_model._engine
    assert isinstance(engine, Engine)
    monkeypatch.setattr(engine, "_agreed", None)
    monkeypatch.setattr(Lanes, "_make_context", refuse)
    rows = list(demo_model.batch(ITEMS[:3], max_tokens=5))
    assert [row.error for row in rows] == [None] * 3
    assert widths == []
    assert "answers are written one by one: there is not memory enough" in caplog.text
    assert engine._agreed is None, "it is tried again"


def test_lanes_are_counted_by_what_their_caches_take(demo_model: AyaVision) -> None:
    engine = demo_model._engine
    assert isinstance(engine, Engine)
    figures, options = engine.figures, engine.decoder.options
    each = kv_bytes(figures, options, tokens=2048)
    assert each == 2048 * 2 * figures.layers * figures.kv_heads * figures.head_dim * 2
    found = [
        lanes_within(figures, options, most=4, tokens=2048, free_bytes=free * each) for free in (0, 100, 1000)
    ]
    assert found[0] == 0
    assert found[-1] == 4
    assert found == sorted(found)


def test_by_default_there_are_several_only_where_that_changes_no_answer(
    wide_bundle: Path, widths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demonstration model's window is shorter than its prompts: behind it, a lane rounds in another way."""
    with AyaVision.load(wide_bundle, cache=NO_CACHE) as model:
        engine = model._engine
        assert isinstance(engine, Engine)
        engine._agreed = True
        list(model.batch(ITEMS[:3], max_tokens=6, max_tiles=1))
        assert max(widths) == 3
        widths.clear()
        long = [BatchItem(CELLS, "word " * 500), BatchItem(HEART, "word " * 500)]
        list(model.batch(long, max_tokens=6, max_tiles=1))
        assert widths == []
        engine._agreed = False
        list(model.batch(ITEMS[:3], max_tokens=6, max_tiles=1))
        assert widths == []
        engine._agreed = None
        monkeypatch.setattr("ayaedge.engine.engine.lanes_agree", lambda decoder, count: False)
        list(model.batch(ITEMS[:3], max_tokens=6, max_tiles=1))
        assert widths == []


def test_a_number_of_answers_that_makes_no_sense_is_refused(demo_model: AyaVision) -> None:
    for wrong in (0, -1, 65, 1.5, True):
        with pytest.raises(InvalidOptionError, match="parallel"):
            demo_model.batch(ITEMS, parallel=wrong)  # type: ignore[arg-type]
