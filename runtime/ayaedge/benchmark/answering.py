"""A model's answers to a data set's questions, as a batch that goes on where it stopped."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ayaedge.batch.items import BatchItem
from ayaedge.batch.journal import BatchRow
from ayaedge.benchmark.choices import SYSTEM, Style, asked_text
from ayaedge.benchmark.data_set import DataSet
from ayaedge.benchmark.questions import Question

OnRow = Callable[[int, BatchRow], None]
"""Called with the number of rows that are there, and the last one."""

_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


class Answering(Protocol):
    """What answers requests in OpenAI's form, a row for each; `AyaVision` does."""

    def batch(self, items: Iterable[BatchItem], *, journal: Path | None) -> Iterator[BatchRow]:
        """The rows, in the order of the items; those that the journal answers at once."""
        ...


@dataclass(frozen=True)
class Asking:
    """How each question is asked."""

    style: Style = "letters"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the request, beside its messages: limits of tokens and tiles."""

    def text(self, question: Question) -> str:
        """What is asked behind the pictures."""
        return asked_text(question, self.style)

    def system(self, question: Question) -> str | None:
        """The instruction before a question."""
        return SYSTEM if question.options and self.style == "letters" else None

    def request(self, question: Question) -> dict[str, Any]:
        """The body of a chat completion, with all pictures of a row in front of its question."""
        text = {"type": "text", "text": self.text(question)}
        parts = [*map(image_part, question.images), text]
        messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]
        if system := self.system(question):
            messages.insert(0, {"role": "system", "content": system})
        return {"messages": messages, **self.options}


@dataclass(frozen=True)
class Answered:
    """What a model answered."""

    questions: list[Question]
    """Without their pictures."""
    rows: dict[str, BatchRow]
    """By the questions' keys; without the answers in OpenAI's form."""

    def answer(self, key: str) -> str | None:
        """The answer to a question, or None if there is none."""
        return self.rows[key].answer if key in self.rows else None

    def is_cut_off(self, key: str) -> bool:
        """Whether the limit on tokens ended an answer."""
        return key in self.rows and self.rows[key].stop_reason == "length"

    @property
    def longest(self) -> int:
        """Most tokens of a question and its answer together."""
        used = [row.usage for row in self.rows.values() if row.usage]
        return max((one["prompt_tokens"] + one["completion_tokens"] for one in used), default=0)


def answer_all(
    model: Answering, data: DataSet, asking: Asking, journal: Path | None, on_row: OnRow
) -> Answered:
    """A row for each question; one that failed has an error. Raises BatchError if too many failed."""
    done = Answered([], {})

    def items(questions: Iterable[Question]) -> Iterator[BatchItem]:
        for question in questions:
            done.questions.append(replace(question, images=()))
            yield BatchItem(custom_id=question.key, request=asking.request(question))

    with closing(data.questions()) as questions:
        for row in model.batch(items(questions), journal=journal):
            assert row.custom_id is not None
            done.rows[row.custom_id] = replace(row, completion=None)
            on_row(len(done.rows), row)
    return done


def image_part(data: bytes) -> dict[str, Any]:
    """A picture's file as a part of a message."""
    kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), "png")
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
