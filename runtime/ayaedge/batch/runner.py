"""One row after the other: what is known is not computed again, what failed is tried again.

The next questions are handed over while others are answered, so that the model never waits for a disk.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ayaedge.answers import Answer
from ayaedge.batch.items import BatchItem, as_item
from ayaedge.batch.journal import BatchRow, Journal
from ayaedge.checks import check_options, instance, real_number, whole_number
from ayaedge.errors import (
    AyaEdgeError,
    BackendError,
    BatchError,
    CancelledError,
    ClosedError,
    InvalidOptionError,
    TruncatedError,
)
from ayaedge.images.load import take_image
from ayaedge.images.pages import Page
from ayaedge.images.sources import TakenPath, file_of
from ayaedge.options import AnswerOptions

_JUDGED_FROM = 10
"""Rows after which a rate of errors says something."""
_MOST_PARALLEL = 64
_PASSING_ERRORS = (BackendError,)
"""What may go well the next time; an image that cannot be read is not tried twice in one run."""


class Waiting(Protocol):
    """An answer on its way; `AnswerHandle` is one."""

    def result(self) -> Any:
        """Wait for it."""

    def cancel(self) -> None:
        """Give it up."""


class Later:
    """Work that begins when somebody waits for it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work

    def result(self) -> Any:
        """See `Waiting`."""
        return self._work()

    def cancel(self) -> None:
        """See `Waiting`."""


@dataclass(frozen=True)
class BatchOptions:
    """How a batch goes on when something fails."""

    retries: int = 1
    """How often a row is tried again in the same run if the model failed."""
    max_error_rate: float = 0.5
    """Of the rows of this run; above it the batch stops, after ten rows at the earliest."""
    overwrite: bool = False
    """Whether rows that are known are computed anew."""
    parallel: int | None = None
    """Answers that are written side by side; None means as many as pay and fit, if that changes none."""
    ahead: bool | None = None
    """Whether the next image is encoded while others are answered; None means where that pays."""

    def __post_init__(self) -> None:
        check_options(
            whole_number("retries", self.retries, least=0, most=100),
            real_number("max_error_rate", self.max_error_rate, least=0, most=1, limits="from 0 to 1"),
            instance("overwrite", self.overwrite, bool),
            instance("ahead", self.ahead, bool, optional=True),
            whole_number("parallel", self.parallel, least=1, most=_MOST_PARALLEL, optional=True),
        )


@dataclass(frozen=True)
class Wanted:
    """What is asked about every item, whoever answers."""

    identity: bytes
    """Of the bundle."""
    prompt: str
    system: str | None
    options: AnswerOptions

    def fingerprint(self, prompt: str | None) -> str:
        """SHA-256 of everything but the image that an answer depends on."""
        facts = (self.identity.hex(), self.system, prompt, None if prompt is None else _facts(self.options))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def blank(self, item: BatchItem) -> tuple[BatchRow, AyaEdgeError | None]:
        """The row of an item before it is asked, and why it cannot be."""
        if item.request is not None:
            sha = hashlib.sha256(json.dumps(item.request, sort_keys=True).encode()).hexdigest()
            return BatchRow(None, None, item.custom_id, sha, self.fingerprint(None), None), None
        prompt = item.question(self.prompt)
        path = None if item.file is None else str(item.file)
        row = BatchRow(path, item.page, item.custom_id, None, self.fingerprint(prompt), prompt)
        try:
            return replace(row, sha256=_digest(item.image)), None
        except AyaEdgeError as error:
            return row, error


@dataclass(frozen=True)
class Work(Wanted):
    """How a model answers items: what the batch has for all of them."""

    ask: Callable[[str, Any], Waiting]
    """A question about one image."""
    complete: Callable[[Any], Waiting]
    """A request in OpenAI's form."""
    at_once: int = 1
    """Answers that are written side by side; as many more questions but one wait for their turn."""


def _facts(options: AnswerOptions) -> str:
    return repr(replace(options, response_format=None))  # from which the grammar was made


@dataclass
class _Asked:
    """A row that is on its way."""

    item: BatchItem
    row: BatchRow
    handle: Waiting | None = None
    error: AyaEdgeError | None = None
    began: float = field(default_factory=time.perf_counter)


class FailureRate:
    """Rows of this run that failed, against what is allowed."""

    def __init__(self, options: BatchOptions) -> None:
        self._most, self._done, self._failed = options.max_error_rate, 0, 0

    def count(self, row: BatchRow) -> None:
        """Note a row that was computed; BatchError if too many have failed."""
        self._done += 1
        self._failed += row.error is not None
        if self._done >= _JUDGED_FROM and self._failed > self._most * self._done:
            raise BatchError(
                f"{self._failed} of {self._done} rows failed, more than a max_error_rate of {self._most:g} allows; "
                f"the last reason: {row.error}"
            )


def known_row(journal: Journal, blank: BatchRow) -> BatchRow | None:
    """The answer that there is to a row, which is noted for this row too if it is another's."""
    if blank.sha256 is None:
        return None
    row = journal.find(blank.identity)
    if row is not None and row.error is None:
        return row
    same = journal.find_work(blank.work)
    return None if same is None else copy_answer(journal, same, blank)


def copy_answer(journal: Journal, same: BatchRow, blank: BatchRow) -> BatchRow:
    """Note for a row the answer that another row has to the same work."""
    copied = replace(
        same, path=blank.path, custom_id=blank.custom_id, seconds=None, same_as=same.same_as or same.path
    )
    journal.append(copied)
    return copied


def run_batch(
    items: Iterable[Any], work: Work, journal: Path | None, options: BatchOptions
) -> Iterator[BatchRow]:
    """The rows of all items, in their order; those with an answer in the journal come from there.

    Raises BatchError if too many rows fail, and what ends a model; a row's own failure is in the row.
    """
    with Journal(journal) as kept:
        yield from _Run(work, kept, options).rows(items)


class _Run:
    def __init__(self, work: Work, journal: Journal, options: BatchOptions) -> None:
        self._work, self._journal, self._options = work, journal, options
        self._pending: deque[_Asked] = deque()
        self._judge = FailureRate(options)

    def rows(self, items: Iterable[Any]) -> Iterator[BatchRow]:
        try:
            for given in items:
                item = as_item(given)
                blank, problem = self._work.blank(item)
                if any(asked.row.work == blank.work for asked in self._pending):
                    yield from self._finish(0)  # the same again: its answer is copied
                if (known := self._known(blank)) is not None:
                    yield from self._finish(0)
                    yield known
                    continue
                if item.skip:
                    yield from self._finish(0)
                    yield replace(blank, stop_reason="skipped")
                    continue
                self._pending.append(self._start(item, blank, problem))
                yield from self._finish(2 * self._work.at_once - 1)
            yield from self._finish(0)
        finally:
            for asked in self._pending:
                if asked.handle is not None:
                    asked.handle.cancel()

    def _known(self, blank: BatchRow) -> BatchRow | None:
        return None if self._options.overwrite else known_row(self._journal, blank)

    def _start(self, item: BatchItem, blank: BatchRow, problem: AyaEdgeError | None) -> _Asked:
        if problem is not None:
            return _Asked(item, blank, error=problem)
        try:
            if item.request is not None:
                return _Asked(item, blank, self._work.complete(item.request))
            return _Asked(item, blank, self._work.ask(blank.prompt or "", item.image))
        except ClosedError:
            raise
        except AyaEdgeError as error:
            return _Asked(item, blank, error=error)

    def _finish(self, left: int) -> Iterator[BatchRow]:
        """Wait for the oldest rows until only so many are left; what comes of them is written down."""
        while len(self._pending) > left:
            asked = self._pending[0]
            row = self._outcome(asked)
            self._journal.append(row)
            self._pending.popleft()
            yield row
            self._judge.count(row)

    def _outcome(self, asked: _Asked) -> BatchRow:
        attempts = 0
        while True:
            attempts += 1
            try:
                if asked.error is not None:
                    raise asked.error
                assert asked.handle is not None
                return replace(_answered(asked, asked.handle.result()), attempts=attempts)
            except (CancelledError, ClosedError):
                raise
            except AyaEdgeError as error:
                if attempts > self._options.retries or not isinstance(error, _PASSING_ERRORS):
                    return replace(asked.row, error=f"{type(error).__name__}: {error}", attempts=attempts)
                began = asked.began
                asked = self._start(asked.item, asked.row, None)
                asked.began = began


def _answered(asked: _Asked, answer: Any) -> BatchRow:
    """The row with its answer; TruncatedError for one that was cut off and had to have a form."""
    if not isinstance(answer, Answer):
        (choice,) = answer["choices"]
        return replace(
            asked.row, answer=choice["message"]["content"], stop_reason=choice["finish_reason"], usage=answer["usage"],
            completion=answer, seconds=time.perf_counter() - asked.began,
        )  # fmt: skip
    value = None
    if answer.response_format is not None:
        if answer.stop_reason != "stop":
            raise TruncatedError(
                f"the answer was cut off behind {len(answer.ids)} tokens: {answer.text[:200]}"
            )
        value = json.loads(answer.text)
    usage, timings = answer.usage, answer.timings
    counted = {
        "prompt_tokens": usage.prompt_tokens, "image_tokens": usage.image_tokens, "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens, "tiles": sum(usage.tiles),
    }  # fmt: skip
    return replace(
        asked.row, answer=answer.text, object=value, stop_reason=answer.stop_reason, usage=counted,
        seconds=timings.first_token + timings.decode,
    )  # fmt: skip


def _digest(image: Any) -> str:
    """SHA-256 of an image's file, or of its pixels; InvalidOptionError for what has no content of its own."""
    taken = take_image(image)
    source = taken.file if isinstance(taken, Page) else taken
    if isinstance(source, np.ndarray):
        return hashlib.sha256(repr(source.shape).encode() + source.tobytes()).hexdigest()
    if hasattr(source, "tiles"):
        raise InvalidOptionError("an item of a batch is an image, not one that was encoded already")
    if isinstance(source, TakenPath):
        with suppress(OSError):  # said when it is read
            found = source.path.stat()
            return _file_digest(source, found.st_size, found.st_mtime_ns)
    return hashlib.sha256(file_of(source)[0]).hexdigest()


@lru_cache(maxsize=4)
def _file_digest(file: TakenPath, _size: int, _modified: int) -> str:
    """Of a file, once for all pages of a document."""
    return hashlib.sha256(file_of(file)[0]).hexdigest()
