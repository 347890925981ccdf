"""The next question's images: read, cut and encoded on another thread while the decoder is busy with the present one.

One question at a time, so that there is memory for one more image's embeddings and no more.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread

from ayaedge.engine.interface import Question


@dataclass(frozen=True)
class _Job:
    """Work for a question that has not begun."""

    question: Question
    done: Future[Question]

    @property
    def is_for_nothing(self) -> bool:
        """Whether it is over, and its question is too."""
        return self.done.done() and self.question.request.over


class Ahead:
    """Works for the next question; every method is for the model's thread.

    While it works the vision tower is its own: before the model's thread uses it, it calls `take` or `wait`.
    """

    def __init__(self) -> None:
        self._job: _Job | None = None

    def begin(self, question: Question, encode: Callable[[Question], Question]) -> None:
        """Start to `encode` a question, unless another one is being worked for, or has been and is still wanted."""
        if self._job is None or self._job.is_for_nothing:
            self._job = _Job(question, Future())
            # a daemon, as the interpreter's exit ends it through its question
            Thread(target=_work, args=(encode, self._job), name="ayaedge ahead", daemon=True).start()

    def take(self, question: Question) -> Question:
        """A question that begins now, with its images encoded if they are; what went wrong with them is raised.

        Where there was no memory for them it is as it was: in its turn there may be.
        """
        self.wait()
        if self._job is None or self._job.question is not question:
            return question
        job, self._job = self._job, None
        try:
            return job.done.result()
        except MemoryError:
            return question

    def wait(self) -> None:
        """Let it finish. What is not wanted any more is forgotten; the rest waits for its question's turn."""
        if self._job is not None:
            self._job.done.exception()
            if self._job.is_for_nothing:
                self._job = None

    def close(self) -> None:
        """Let go of everything."""
        self.wait()
        self._job = None


def _work(encode: Callable[[Question], Question], job: _Job) -> None:
    try:
        job.done.set_result(encode(job.question))
    except BaseException as error:  # noqa: BLE001 - raised when it is the question's turn
        job.done.set_exception(error)
