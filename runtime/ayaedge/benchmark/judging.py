"""Which of two answers a judge likes better: each pair is shown in both orders, since judges like places too."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ayaedge.batch.items import BatchItem
from ayaedge.batch.journal import BatchRow
from ayaedge.batch.runner import BatchOptions, Later, Waiting, Work, run_batch
from ayaedge.benchmark.answering import Answered, OnRow, image_part
from ayaedge.benchmark.data_set import DataSet
from ayaedge.benchmark.endpoint import JudgeEndpoint
from ayaedge.benchmark.outcomes import Verdict
from ayaedge.benchmark.questions import Question
from ayaedge.options import answer_options
from ayaedge.untrusted.json_text import parse_json

Preference = Literal["A", "B", "tie"]
_RETRIES = 4
_FORM = {
    "type": "object",
    "properties": {"better": {"enum": ["A", "B", "tie"]}},
    "required": ["better"],
    "additionalProperties": False,
}
_SYSTEM = (
    "You compare two answers to a question about pictures. Judge whether they are right about the pictures, answer "
    "what was asked, are complete, and are written well in the language of the question; an answer in another language "
    "is a bad one, and a longer answer is not better for its length. The order of the answers means nothing. Reply "
    'with JSON: {"better": "A"}, {"better": "B"}, or {"better": "tie"} if neither is better.'
)


def judge_all(
    judge: JudgeEndpoint, data: DataSet, ours: Answered, theirs: Answered, journal: Path | None, on_row: OnRow
) -> dict[str, Verdict | None]:
    """The verdict on each question that both models answered; None where the judge gave none.

    Equal answers are a tie without asking. A model wins if it is preferred in both orders, or in one and tied in the
    other. Verdicts are kept in the journal. Raises BatchError if the judge failed too often.
    """
    pairs = {
        key: (one, other)
        for key in ours.rows
        if (one := ours.answer(key)) is not None and (other := theirs.answer(key)) is not None
    }
    verdicts: dict[str, Verdict | None] = {key: "tie" for key, (one, other) in pairs.items() if one == other}
    asked: dict[str, list[Preference | None]] = {}
    with closing(data.questions()) as questions:
        for number, row in enumerate(run_batch(_items(questions, pairs), _work(judge), journal, _OPTIONS), 1):
            key, _, order = (row.custom_id or "").rpartition(" ")
            asked.setdefault(key, []).append(_turned(preference(row), order))
            on_row(number, row)
    return {**verdicts, **{key: _verdict(found) for key, found in asked.items()}}


_OPTIONS = BatchOptions(retries=_RETRIES)
_ORDERS = ("ours-first", "theirs-first")


def _items(
    questions: Iterable[Question], pairs: Mapping[str, tuple[str, str]]
) -> Generator[BatchItem, None, None]:
    for question in questions:
        ours, theirs = pairs.get(question.key, ("", ""))
        if ours != theirs:
            for order, shown in zip(_ORDERS, ((ours, theirs), (theirs, ours)), strict=True):
                yield BatchItem(custom_id=f"{question.key} {order}", request=_request(question, *shown))


def _request(question: Question, first: str, second: str) -> dict[str, Any]:
    text = f"Question:\n{question.text}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}"
    parts = [*map(image_part, question.images), {"type": "text", "text": text}]
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": _FORM}}
    messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": parts}]
    return {"messages": messages, "temperature": 0, "response_format": form}


def _work(judge: JudgeEndpoint) -> Work:
    identity = hashlib.sha256(f"{judge.url} {judge.model}".encode()).digest()
    return Work(identity, "", None, answer_options(), _no_question, partial(_verdict_of, judge))


def _verdict_of(judge: JudgeEndpoint, request: Any) -> Waiting:
    return Later(partial(judge.complete, request))


def _no_question(_prompt: str, _image: Any) -> Waiting:
    raise AssertionError("a judge is asked in OpenAI's form")


def preference(row: BatchRow) -> Preference | None:
    """What a judge's answer says, in JSON, with or without text around it; None if it says nothing of the kind."""
    text = row.answer or ""
    start, stop = text.find("{"), text.rfind("}")
    try:
        value = parse_json(text[start : stop + 1].encode("utf-8", "replace"))
    except ValueError:
        return None
    better = value.get("better") if isinstance(value, dict) else None
    return better if better in ("A", "B", "tie") else None


def _turned(found: Preference | None, order: str) -> Preference | None:
    """As if ours had been shown first."""
    if order == _ORDERS[1] and found in ("A", "B"):
        return "B" if found == "A" else "A"
    return found


def _verdict(found: Iterable[Preference | None]) -> Verdict | None:
    """None if one of the orders has no answer."""
    points = {"A": 1, "B": -1, "tie": 0}
    values = [points[one] for one in found if one is not None]
    if len(values) != len(_ORDERS):
        return None
    total = sum(values)
    return "win" if total > 0 else "loss" if total < 0 else "tie"
