"""How a model is asked about the items of a batch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ayaedge.batch.journal import BatchRow
from ayaedge.batch.runner import BatchOptions, Waiting, Work, run_batch
from ayaedge.checks import path_of
from ayaedge.options import AnswerKeywords, answer_options


def ask_all(
    model: Any,
    items: Iterable[Any],
    prompt: str,
    system: str | None,
    local_files: Path | Sequence[Path],
    options: AnswerKeywords,
    journal: str | os.PathLike[str] | None,
    failing: tuple[int, float, bool],
) -> Iterator[BatchRow]:
    """What `AyaVision.batch` gives, of a model that is one; InvalidOptionError for options that make no sense."""
    settled, going_on = answer_options(**options), BatchOptions(*failing)
    ask, complete = partial(_ask, model, system, options), partial(_complete, model, local_files)
    work = Work(model.bundle.identity, prompt, system, settled, ask, complete)
    return run_batch(items, work, None if journal is None else path_of("journal", journal), going_on)


def _ask(model: Any, system: str | None, options: Mapping[str, Any], question: str, image: Any) -> Waiting:
    asked: Waiting = model.submit(question, images=image, system=system, **options)
    return asked


def _complete(model: Any, local_files: Path | Sequence[Path], request: Mapping[str, Any]) -> Any:
    """A streamed request is answered whole: a row is a row."""
    given = {name: value for name, value in request.items() if name not in ("stream", "stream_options")}
    return model.create_chat_completion(given.pop("messages", None), local_files=local_files, **given)
