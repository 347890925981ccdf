"""Answers that are written side by side: each step of the loop decodes a token of every one.

A prompt is computed alone, as for a single question, and its answer then gets a lane of `decoder.lanes`. Where a lane
is of no use, for want of memory or as its numbers would be rounded in another way, the answer is written alone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ayaedge.decoder.lanes import Lane, Lanes, rounded
from ayaedge.decoder.sampling import Sampler
from ayaedge.engine.generation import AnswerWriter, decode_demanded, demanded
from ayaedge.engine.interface import USUAL_LANES, Question, Questions, no_progress
from ayaedge.engine.ready_prompt import Laps, ReadyPrompt
from ayaedge.errors import BackendError, CancelledError, OutOfMemoryError
from ayaedge.hardware.machine import memory
from ayaedge.planning.costs import ANSWER_ROOM
from ayaedge.planning.parallel_plan import kv_bytes, lanes_within

if TYPE_CHECKING:
    from ayaedge.engine.engine import Engine

logger = logging.getLogger(__name__)


def answer_together(engine: Engine, questions: Questions, most: int | None, ahead: bool | None) -> None:
    """See `AnyEngine`."""
    together = _Together(engine, questions, most, engine.encodes_ahead if ahead is None else ahead)
    try:
        while True:
            # 1. Lanes that are free get the next questions.
            while together.has_room and (question := questions.take()) is not None:
                together.begin(question)
            if not together.rows:
                return
            # 2. The images of the question that comes next are encoded meanwhile.
            together.look_ahead()
            # 3. All answers get their next token; those that end with it leave.
            together.step()
    finally:
        together.close()


@dataclass
class _Row:
    """An answer that is being written."""

    ready: ReadyPrompt
    sampler: Sampler
    writer: AnswerWriter
    lane: Lane
    held: ExitStack
    """What must be closed behind it."""
    token: int
    """The last one, which the lane does not hold yet."""
    ahead: deque[int] = field(default_factory=deque)
    """Tokens behind what the lane holds that are known already."""
    over: bool = False
    error: BaseException | None = None

    def attempt(self, work: Callable[[], None]) -> None:
        """Do a part of the work; what goes wrong is this answer's alone."""
        try:
            work()
        except CancelledError:
            self.writer.written.stop_reason, self.over = "cancelled", True
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is asked for
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Note what ends it."""
        self.over, self.error = True, error

    def decode_demanded(self) -> None:
        """Decode, for this answer alone as for a single one, what its grammar demands next."""
        request, options = self.writer.request, self.ready.question.options
        request.cancellation.check()
        while not self.over and (forced := demanded(self.sampler, self.writer.room, options)):
            found = decode_demanded(self.lane, self.sampler, self.token, forced, self.writer.room)
            self.ahead.extend(found)
            self.choose()

    def choose(self) -> None:
        """Take the next token, and all that are known behind it."""
        while True:
            self.token = self.ahead.popleft() if self.ahead else self.sampler.sample(self.lane)
            self.over = not self.writer.take(self.token, self.lane)
            if self.over or not self.ahead:
                return

    def end(self) -> None:
        """Give the answer, or the error."""
        request = self.writer.request
        try:
            if self.error is not None:
                raise self.error
            request.end(self.ready.answer(self.writer.finish()), None)
        except BaseException as error:  # noqa: BLE001 - as above
            request.fail(error)
        finally:
            self.held.close()


class _Together:
    def __init__(self, engine: Engine, questions: Questions, most: int | None, ahead: bool) -> None:
        self.rows: list[_Row] = []
        self._engine, self._decoder = engine, engine.decoder
        self._questions, self._looks_ahead = questions, ahead
        self._most, self._exact = most or USUAL_LANES, most is None
        self._lanes: Lanes | None = None
        if self._exact and not self._agree():
            self._most = 1

    @property
    def has_room(self) -> bool:
        """Whether one more answer may begin."""
        return len(self.rows) < (self._most if self._lanes is None else self._lanes.count)

    def close(self) -> None:
        """Free the lanes; answers that are not finished fail."""
        for row in self.rows:
            row.fail(CancelledError())
        self._part()
        self._close_lanes()
        self._engine.ahead.wait()

    def look_ahead(self) -> None:
        """Have the next question's images encoded, if that is wanted and one waits."""
        if self._looks_ahead and (question := self._questions.peek()) is not None:
            self._engine.look_ahead(question)

    def begin(self, question: Question) -> None:
        """Compute a prompt, and its answer's first token; whatever goes wrong is that question's alone."""
        request, laps = question.request, Laps()
        try:
            with ExitStack() as held:
                sampler = held.enter_context(
                    self._engine.open_sampler(question.options, request.cancellation)
                )
                encoded = self._engine.ahead.take(question)
                ready = self._engine.prepare(encoded, no_progress, laps, on_encoded=self.look_ahead)
                ready = replace(ready, question=question)  # without embeddings, which are many
                if (lane := self._lane_for(ready)) is None:
                    self.look_ahead()
                    request.end(self._engine.write(ready, sampler), None)
                else:
                    self._join(ready, sampler, lane, held.pop_all())
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is asked for
            request.fail(error)

    def step(self) -> None:
        """Decode the last token of each answer, and choose the next one; those that are over leave."""
        for row in self.rows:
            row.attempt(row.decode_demanded)
        rows = [row for row in self.rows if not row.over]
        try:
            if rows and self._lanes is not None:
                self._lanes.decode([(row.lane, row.token) for row in rows])
        except OutOfMemoryError as error:  # there is none for another token of the longest
            longest = max(rows, key=lambda row: row.lane.position)
            longest.fail(error)
        except BackendError as error:
            for row in rows:
                row.fail(error)
        else:
            for row in rows:
                row.attempt(row.choose)
        self._part()

    def _agree(self) -> bool:
        try:
            return self._engine.lanes_agree(self._most)
        except OutOfMemoryError as error:  # there may be some the next time
            logger.warning("answers are written one by one: %s", error)
            return False

    def _join(self, ready: ReadyPrompt, sampler: Sampler, lane: Lane, held: ExitStack) -> None:
        """Choose the first token by the decoder's logits; the others are the lane's."""
        question, decoder = ready.question, self._decoder
        room = decoder.context_size - len(ready.fitted.prompt.ids)
        tokens = self._engine.bundle.manifest.tokens
        writer = AnswerWriter(decoder.vocabulary.piece, tokens, question.options, question.request, room)
        row = _Row(ready, sampler, writer, lane, held, token=-1)
        self.rows.append(row)

        def first() -> None:
            row.token = sampler.sample(decoder)
            row.over = not writer.take(row.token, decoder)

        row.attempt(first)
        self._part()

    def _part(self) -> None:
        """Let those that are over leave. What a context holds behind an error is not known: the others get another."""
        leaving = [row for row in self.rows if row.over]
        self.rows = [row for row in self.rows if not row.over]
        lanes = self._lanes
        if lanes is not None:
            for lane in sorted((row.lane for row in leaving), key=lambda lane: -lane.number):
                lanes.drop(lane)  # the last ones first, whose places nobody has to take
            if any(isinstance(row.error, BackendError) for row in leaving):
                self._renew(lanes)
        for row in leaving:
            row.end()

    def _renew(self, lanes: Lanes) -> None:
        try:
            lanes.renew()
        except BackendError as error:
            failed, self.rows = self.rows, []
            self._close_lanes()
            for row in failed:
                row.fail(error)
                row.end()

    def _lane_for(self, ready: ReadyPrompt) -> Lane | None:
        """A lane that holds what the decoder holds, with room for an answer; None if it is better written alone."""
        need = len(ready.fitted.prompt.ids) + ready.question.options.answer_room(ANSWER_ROOM)
        need = min(need, self._decoder.context_size)
        if self._most < 2 or (self._exact and need > self._decoder.whole_until):
            return None
        try:
            if self._lanes is None:
                self._lanes = self._open_lanes(need)
            elif need > self._lanes.capacity:
                if self._fitting(self._lanes.count, need) < self._lanes.count:
                    return None
                self._lanes.renew(need)
        except OutOfMemoryError as error:
            logger.warning("an answer is written alone: %s", error)
            return None
        return None if self._lanes is None else self._lanes.take_over()

    def _open_lanes(self, capacity: int) -> Lanes | None:
        """As many lanes as fit; none, with a warning, if that are not two."""
        count = self._fitting(self._most, capacity)
        if count < self._most:
            logger.warning(
                "there is memory for %s answers of %s tokens side by side", max(count, 1), capacity
            )
        self._most = max(count, 1)
        return Lanes(self._decoder, count, capacity) if count > 1 else None

    def _fitting(self, most: int, capacity: int) -> int:
        """How many lanes there is memory for, those that there are given back."""
        if self._decoder.gpu_layers:
            return most  # llama.cpp says what graphics memory holds
        figures, options, free = self._engine.figures, self._decoder.options, memory().available
        if self._lanes is not None:
            most_now, tokens_now = self._lanes.count, self._lanes.capacity
            free += kv_bytes(figures, options, tokens=most_now * tokens_now)
        return lanes_within(figures, options, most=most, tokens=rounded(capacity), free_bytes=free)

    def _close_lanes(self) -> None:
        lanes, self._lanes = self._lanes, None
        if lanes is not None:
            lanes.close()
