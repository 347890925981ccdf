"""What of a prompt the decoder knows already: segments of prompts, their identity, and states at their ends.

A prompt is a chain of segments that are always decoded in the same calls: the template's fixed preamble, the text up
to an image, an image, the text behind it. A state is reused at the end of a segment only, so an answer is the same,
bit for bit, whether its prefix was decoded or restored. Earlier answers are segments too: those were decoded token by
token when they were written, and together if they have to be decoded again, which rounds logits in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ayaedge.cache.stores import RecentArrays, State, StateStore
from ayaedge.decoder.decoder import Decoder
from ayaedge.engine.segments import Segment, extend_key
from ayaedge.text.prompt import common_start

_IDS = " ids"
"""Behind the key of an answer that was put aside: of its tokens."""


class KnownPrefix:
    """Brings one decoder to the longest known beginning of a prompt.

    `turns` keeps the states of conversations that another one has displaced from the decoder.
    """

    def __init__(self, decoder: Decoder, states: StateStore, turns: StateStore | None = None) -> None:
        self._decoder, self._states = decoder, states
        self._turns = turns or RecentArrays(0)
        self._live: list[Segment] = []
        """Segments that the decoder holds, from its beginning."""
        self._worth_keeping = False
        """Whether the last of them is the answer of a conversation that may go on."""

    def recall(self, segments: Sequence[Segment]) -> list[Segment]:
        """What is left to decode, at least the last segment, behind what the decoder holds now.

        The context itself comes first, then the stores, longest prefix first.
        """
        live, self._live = self._live, []  # an exception leaves a decoder of which nothing is known
        shared = _shared(live, segments)
        same = _same_answer(live[shared:], segments[shared:-1])
        if shared + bool(same) < len(live):
            self._put_aside(live)
        for count in range(len(segments) - 1, 0, -1):
            stop, answer = segments[count - 1].stop, segments[count : len(segments) - 1]
            if count == shared and same and self._decoder.keep(stop + same):
                return self._go_on(segments, count, same)
            if answer and (found := self._restore_turn(segments[:count], answer[0])) is not None:
                return self._go_on(segments, count, found)
            if (count <= shared and self._decoder.keep(stop)) or self._restore(segments[:count]):
                return self._go_on(segments, count, 0)
        self._decoder.clear()
        return list(segments)

    def foresee(self, segments: Sequence[Segment], present: Sequence[Segment]) -> list[Segment]:
        """What is likely to be left of a prompt behind another one, the present one. Safe on any thread."""
        shared = _shared(present, segments)
        for count in range(len(segments) - 1, 0, -1):
            chain = [segment for segment in segments[:count] if segment.keepable]
            stored = chain and chain[-1] == segments[count - 1] and self._holds(chain)
            if count <= shared or stored:
                return list(segments[count:])
        return list(segments)

    def snapshot(self, segments: Sequence[Segment]) -> tuple[Segment, State] | None:
        """The state of as many of these segments as are known, and the last of them.

        None if there is none, or if another conversation would lose by it.
        """
        live = self._live
        shared = _shared(live, segments)
        same = _same_answer(live[shared:], segments[shared:-1])
        if shared + bool(same) < len(live):
            known = any(self._turns.holds(_turn_key(one)) for one in segments)
            if not known or not self._put_aside(live):
                return None
        self.recall(segments)
        if not self._live or not self._decoder.is_whole or not self._decoder.keep(self._live[-1].stop):
            return None
        return self._live[-1], self._decoder.state()

    def adopt(self, segments: Sequence[Segment], state: State) -> bool:
        """Take over a state of everything up to the end of these segments; False if it is of no use.

        So it is, too, if it would displace a conversation that cannot be put aside.
        """
        if self._live and not self._put_aside(self._live):
            return False
        self._live = []
        self._decoder.clear()
        if self._decoder.append_state(state, segments[-1].stop):
            self._live = list(segments)
            self._worth_keeping = True
        return bool(self._live)

    def close(self) -> None:
        """Let go of everything."""
        self._live, self._states, self._turns = [], RecentArrays(0), RecentArrays(0)

    def forget(self) -> None:
        """Know nothing of the decoder any more: something else is decoded now."""
        self._live = []

    def decoded(self, segment: Segment) -> None:
        """Note that the next segment was decoded."""
        self._live.append(segment)

    def answered(self, ids: Sequence[int], *, worth_keeping: bool) -> None:
        """Note that these tokens were decoded one by one behind the prompt.

        `worth_keeping` if a conversation is likely to go on behind them.
        """
        if self._live and ids:
            last, written = self._live[-1], tuple(ids)
            key = extend_key(last.key, written)
            self._live.append(Segment(last.stop, last.stop + len(written), None, key, False, written))
            self._worth_keeping = worth_keeping

    def keep_state(self) -> None:
        """Keep the state at the end of the segment that was decoded last, if it can be restored bit for bit.

        It holds what was decoded since the last segment of which a state was to be kept.
        """
        *before, segment = self._live
        if segment.keepable and self._decoder.is_whole and not self._states.holds(segment.key):
            start = _delta_start(before)
            if self._states.wants(self._decoder.state_bytes(start)):
                self._states.save(segment.key, self._decoder.state(start))

    def _go_on(self, segments: Sequence[Segment], count: int, same: int) -> list[Segment]:
        """What is left behind `count` segments and `same` tokens of the answer that follows them."""
        self._live, left = list(segments[:count]), list(segments[count:])
        if same:
            left[0] = replace(left[0], start=left[0].start + same)
            if left[0].start == left[0].stop:
                self._live.append(left.pop(0))
        return left

    def _put_aside(self, live: Sequence[Segment]) -> bool:
        """Keep the state of a conversation whose last answer is about to be lost; False if that is not possible."""
        if not self._worth_keeping or len(live) < 2 or not live[-1].answer:
            return True
        *before, last = live
        key, ids = _turn_key(before[-1]), np.asarray(last.answer, "<i4").view(np.uint8)
        kept = self._turns.load(key + _IDS)
        if kept is not None and np.array_equal(kept, ids) and self._turns.holds(key):
            return True
        if not self._decoder.is_whole or not self._decoder.keep(last.stop):
            return False
        start = _delta_start(before)
        if not self._turns.wants(self._decoder.state_bytes(start)):
            return False
        self._turns.save(key, self._decoder.state(start))
        self._turns.save(key + _IDS, ids)
        return True

    def _restore_turn(self, segments: Sequence[Segment], answer: Segment) -> int | None:
        """Restore a conversation up to where its answer, as it was put aside, differs from this one.

        Returns how many tokens of the answer the decoder holds then; None if there is nothing to restore.
        """
        key = _turn_key(segments[-1])
        ids, state = self._turns.load(key + _IDS), self._turns.load(key)
        if not answer.answer or ids is None or state is None:
            return None
        written = ids.view("<i4").tolist()
        same = len(common_start(written, answer.answer))
        if not self._restore_chain([one for one in segments if one.keepable]):
            return None
        if not self._decoder.append_state(state, answer.start + len(written)):
            return None
        return same if self._decoder.keep(answer.start + same) else None

    def _restore(self, segments: Sequence[Segment]) -> bool:
        """Restore the states that lead to the end of these segments, if there are all of them."""
        chain = [segment for segment in segments if segment.keepable]
        return bool(chain) and chain[-1] == segments[-1] and self._restore_chain(chain)

    def _restore_chain(self, chain: Sequence[Segment]) -> bool:
        if not self._holds(chain):
            return False
        self._decoder.clear()
        for segment in chain:
            state = self._states.load(segment.key)
            if state is None or not self._decoder.append_state(state, segment.stop):
                return False
        return True

    def _holds(self, chain: Sequence[Segment]) -> bool:
        return all(self._states.holds(one.key) for one in chain)


def _shared(live: Sequence[Segment], segments: Sequence[Segment]) -> int:
    """How many leading segments both have."""
    pairs = zip(live, segments, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a.key != b.key), min(len(live), len(segments)))


def _same_answer(live: Sequence[Segment], segments: Sequence[Segment]) -> int:
    """How many leading tokens the answers have in common with which both go on, if they do."""
    if not live or not segments or not (live[0].answer and segments[0].answer):
        return 0
    return len(common_start(live[0].answer, segments[0].answer))


def _delta_start(before: Sequence[Segment]) -> int:
    """Where a state begins that continues those of the segments before it."""
    return max((other.stop for other in before if other.keepable), default=0)


def _turn_key(before: Segment) -> str:
    """Under which an answer behind this segment is put aside."""
    return f"turn {before.key}"
