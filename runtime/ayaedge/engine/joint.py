"""Questions for answers side by side: they wait here, and one request of the model's queue works for all of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.interface import USUAL_LANES, AnyEngine, Question
from ayaedge.engine.service import Service
from ayaedge.engine.streams import AnswerRequest
from ayaedge.engine.worker import Request
from ayaedge.errors import AyaEdgeError
from ayaedge.options import AnswerOptions


class JointAnswers:
    """Takes questions from any thread, and has up to `most` answered at once; None leaves that to the engine.

    `ahead` is whether the next one's images are encoded meanwhile; None as above. Other requests for the model get
    their turn when as many as `most` were begun.
    """

    def __init__(self, service: Service, most: int | None, ahead: bool | None = None) -> None:
        self._service, self._most, self._ahead = service, most, ahead
        self._lock = threading.Lock()
        self._waiting: deque[Question] = deque()
        self._turn: Request[None, None] | None = None

    def ask(self, dialogue: Dialogue, options: AnswerOptions) -> AnswerRequest:
        """Have a question answered; BusyError and ClosedError as `Service.request`."""
        request: AnswerRequest = Request()
        self._service.adopt(request)
        question = Question(request, dialogue, options)
        with self._lock:
            self._waiting.append(question)
            if self._turn is not None:
                return request
            try:
                turn = self._turn = self._service.request(self._work)
            except BaseException:
                self._waiting.remove(question)
                raise
        turn.when_over(self._over)
        return request

    def _work(self, engine: AnyEngine, turn: Request[None, None]) -> None:
        taking = _Taking(
            self._next, self._first, turn, lambda: self._service.is_wanted, self._most or USUAL_LANES
        )
        with turn.cancellation.ending(taking.abandon):
            engine.answer_together(taking, self._most, self._ahead)

    def _next(self) -> Question | None:
        with self._lock:
            while self._waiting:
                question = self._waiting.popleft()
                if question.request.start():
                    return question
        return None

    def _first(self) -> Question | None:
        with self._lock:
            return next((question for question in self._waiting if not question.request.over), None)

    def _over(self) -> None:
        """The turn has ended: what has come meanwhile, or had to let others go first, gets the next one."""
        left: list[Question] = []
        with self._lock:
            turn, self._turn = self._turn, None
            assert turn is not None
            error = turn.exception()
            if error is None and self._waiting:
                try:
                    turn = self._turn = self._service.request(self._work)
                except AyaEdgeError as refused:
                    error = refused
            if error is not None:
                left, self._waiting = list(self._waiting), deque()
        for question in left:
            assert error is not None
            question.request.fail(error)
        if self._turn is turn:
            turn.when_over(self._over)


class _Taking:
    """Questions that one turn begins: `Questions` for the engine."""

    def __init__(
        self,
        following: Callable[[], Question | None],
        first: Callable[[], Question | None],
        turn: Request[None, None],
        is_wanted: Callable[[], bool],
        least: int,
    ) -> None:
        self._following, self._first, self._turn, self._is_wanted = following, first, turn, is_wanted
        self._left = least
        """Questions to be begun before others get their turn."""
        self._begun: list[AnswerRequest] = []

    def take(self) -> Question | None:
        """See `Questions`."""
        question = None if self._is_over else self._noted(self._following())
        self._left -= question is not None
        return question

    def peek(self) -> Question | None:
        """See `Questions`."""
        return None if self._is_over else self._noted(self._first())

    @property
    def _is_over(self) -> bool:
        return self._turn.cancellation.is_set or (self._left <= 0 and self._is_wanted())

    def _noted(self, question: Question | None) -> Question | None:
        """The same, which is being worked for from now on."""
        if question is not None:
            request = question.request
            self._begun = [*(one for one in self._begun if one is not request and not one.over), request]
            if self._turn.cancellation.is_set:  # perhaps before this one was there
                self.abandon()
        return question

    def abandon(self) -> None:
        """End what is being worked for, as the model is being closed; on any thread."""
        for request in self._begun:
            request.abandon()
