"""How a model is asked about the items of a batch: one after the other, or several side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ayaedge.batch.journal import BatchRow
from ayaedge.batch.runner import BatchOptions, Waiting, Work, run_batch
from ayaedge.checks import path_of
from ayaedge.engine.dialogue import Dialogue, chat_dialogue
from ayaedge.engine.interface import USUAL_LANES
from ayaedge.engine.joint import JointAnswers
from ayaedge.engine.service import Service
from ayaedge.engine.streams import AnswerRequest
from ayaedge.images.load import list_images, take_image
from ayaedge.openai.completions import completion
from ayaedge.openai.options import parse_options
from ayaedge.options import AnswerKeywords, AnswerOptions, answer_options
from ayaedge.text.prompt import Message

_Start: TypeAlias = Callable[[Dialogue, AnswerOptions], AnswerRequest]


def ask_all(
    service: Service,
    items: Iterable[Any],
    prompt: str,
    system: str | None,
    local_files: Path | Sequence[Path],
    options: AnswerKeywords,
    journal: str | os.PathLike[str] | None,
    *how: Any,
) -> Iterator[BatchRow]:
    """What `AyaVision.batch` gives, of a service's model; `how` are the fields of `BatchOptions`.

    InvalidOptionError for options that make no sense.
    """
    going_on = BatchOptions(*how)
    parallel = going_on.parallel
    settled, bundle = answer_options(**options), service.engine.bundle
    start: _Start = JointAnswers(service, parallel, going_on.ahead).ask
    work = Work(
        bundle.identity, prompt, system, settled,
        partial(_ask, start, system, settled), partial(_complete, start, bundle.name, local_files),
        at_once=parallel or USUAL_LANES,
    )  # fmt: skip
    return run_batch(items, work, None if journal is None else path_of("journal", journal), going_on)


def _ask(start: _Start, system: str | None, options: AnswerOptions, question: str, image: Any) -> Waiting:
    images = tuple(take_image(one) for one in list_images(image))
    before = () if system is None else (Message("system", system),)
    return start(Dialogue((*before, Message("user", question, len(images))), images), options)


def _complete(
    start: _Start, name: str, local_files: Path | Sequence[Path], request: Mapping[str, Any]
) -> Waiting:
    """A request in OpenAI's form; one that is to be streamed is answered whole: a row is a row."""
    given = {name: value for name, value in request.items() if name not in ("stream", "stream_options")}
    dialogue, asked = chat_dialogue(given.pop("messages", None), local_files), parse_options(given)
    return _Completion(start(dialogue, answer_options(**asked.options)), asked.model or name)


@dataclass(frozen=True)
class _Completion:
    """An answer on its way that is wanted in OpenAI's form."""

    request: AnswerRequest
    model: str

    def result(self) -> dict[str, Any]:
        """See `Waiting`."""
        return completion(self.request.result(), model=self.model)

    def cancel(self) -> None:
        """See `Waiting`."""
        self.request.cancel()
