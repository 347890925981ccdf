"""What of a prompt the decoder knows already: segments of prompts, their identity, and states at their ends.

A prompt is a chain of segments that are always decoded in the same calls: the template's fixed preamble, the text up
to a picture, a picture, and the text behind it. A state is reused at the end of a segment only, so an answer is the
same, bit for bit, whether its prefix was decoded or restored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ayaedge.decoder import Decoder
from ayaedge.prompt import Prompt
from ayaedge.states import StateStore

_LEAST_TOKENS = 32
"""Prefixes below this are decoded faster than found."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a prompt."""

    start: int
    stop: int
    """Exclusive."""
    picture: int | None
    """Which picture of the prompt it is; None for text."""
    key: str
    """SHA-256 of the model and of everything up to `stop`."""
    keepable: bool
    """Whether the state at its end is kept: behind pictures and the preamble, where it is worth it."""


def split_prompt(
    prompt: Prompt, pictures: Sequence[bytes], *, model: bytes, preamble: Sequence[int] = ()
) -> list[Segment]:
    """The segments of a prompt whose pictures have these identities.

    `model` identifies the decoder and everything that decides about its states; `preamble` are the token ids with
    which prompts begin, if they do.
    """
    ends: list[tuple[int, int | None]] = []
    first = prompt.images[0].start if prompt.images else len(prompt.ids)
    if 0 < len(preamble) < first and prompt.ids[: len(preamble)] == tuple(preamble):
        ends.append((len(preamble), None))
    for number, span in enumerate(prompt.images):
        ends += [(span.start, None), (span.stop, number)]
    ends.append((len(prompt.ids), None))
    segments: list[Segment] = []
    start, chain = 0, hashlib.sha256(model)
    for stop, picture in ends:
        if stop == start:
            continue
        chain.update(f"{start} {stop} {picture is not None}\n".encode())
        chain.update(np.asarray(prompt.ids[start:stop], "<i4").tobytes())
        if picture is not None:
            chain.update(pictures[picture])
        keepable = stop >= _LEAST_TOKENS and (picture is not None or stop == len(preamble))
        segments.append(Segment(start, stop, picture, chain.hexdigest(), keepable))
        start = stop
    return segments


class KnownPrefix:
    """Brings one decoder to the longest known beginning of a prompt."""

    def __init__(self, decoder: Decoder, states: StateStore) -> None:
        self._decoder, self._states = decoder, states
        self._live: list[Segment] = []
        """Segments that the decoder holds, from its beginning."""

    def recall(self, segments: Sequence[Segment]) -> int:
        """How many leading segments the decoder holds now; the rest must be decoded, at least the last one.

        The context itself comes first, then the store, longest prefix first.
        """
        live, self._live = self._live, []  # an exception leaves a decoder of which nothing is known
        for count in range(len(segments) - 1, 0, -1):
            last = segments[count - 1]
            in_context = count <= len(live) and live[count - 1].key == last.key
            if (in_context and self._decoder.keep(last.stop)) or self._restore(segments[:count]):
                self._live = list(segments[:count])
                return count
        self._decoder.clear()
        return 0

    def forget(self) -> None:
        """Know nothing of the decoder any more: something else is decoded now."""
        self._live = []

    def decoded(self, segment: Segment) -> None:
        """Note that the next segment was decoded."""
        self._live.append(segment)

    def keep_state(self) -> None:
        """Keep the state at the end of the segment that was decoded last, if it can be restored bit for bit.

        It holds what was decoded since the last segment of which a state was to be kept.
        """
        *before, segment = self._live
        if segment.keepable and self._decoder.is_whole and not self._states.holds(segment.key):
            start = max((other.stop for other in before if other.keepable), default=0)
            if self._states.wants(self._decoder.state_bytes(start)):
                self._states.save(segment.key, self._decoder.state(start))

    def _restore(self, segments: Sequence[Segment]) -> bool:
        """Restore the states that lead to the end of these segments, if there are all of them."""
        chain = [segment for segment in segments if segment.keepable]
        if not chain or chain[-1] != segments[-1] or not all(self._states.holds(one.key) for one in chain):
            return False
        self._decoder.clear()
        for segment in chain:
            state = self._states.load(segment.key)
            if state is None or not self._decoder.append_state(state, segment.stop):
                return False
        return True
