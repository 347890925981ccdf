"""Several answers side by side: lanes of one llama.cpp context, of which each step decodes a token each.

A step reads the weights once for all lanes. Each lane has a cache of its own, so that attention costs what it costs
one by one, and its numbers are rounded as they are there; whether they are to the bit depends on the processor's
products, which `Lanes.agree` tries. Prompts are not computed here: a `Decoder` holds one, and a lane takes its state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge import llama
from ayaedge.decoder.context import context_parameters
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.kv_state import read_state, spread_state, write_state
from ayaedge.decoder.logits import read_logits
from ayaedge.errors import BackendError, OutOfMemoryError

_STEP = 256
"""Positions of a lane come in portions of so many: llama.cpp's own."""

_GROWTH = 512
"""Positions by which a lane grows beyond what is needed: all lanes are moved then."""
_TRIAL = 8
"""Tokens of a prompt behind which lanes are tried."""


class Lane:
    """One sequence of `Lanes`, and where its logits are."""

    def __init__(self, lanes: Lanes, number: int, position: int) -> None:
        self._lanes = lanes
        self.number = number
        self.position = position
        """Tokens and embeddings that it holds."""
        self.row: int = -1
        """Of the logits of the last step; they are there until the next."""

    @property
    def handle(self) -> Any:
        """The llama_context."""
        return self._lanes.handle

    @property
    def has_logits(self) -> bool:
        """Whether it was part of the last step."""
        return self.row >= 0

    def decode_tokens(self, ids: Sequence[int]) -> None:
        """Append tokens to this lane alone; errors as `Lanes.decode`."""
        for start in range(0, len(ids), self._lanes.batch_size):
            self._lanes.decode([(self, token) for token in ids[start : start + self._lanes.batch_size]])

    def likeliest(self) -> list[int]:
        """The token with the highest logit."""
        return [int(self._row().argmax())]

    def last_logits(self) -> NDArray[np.float32]:
        """Logits of its last position, (vocabulary,)."""
        return self._row().copy()

    def check_logits(self) -> None:
        """Raise BackendError unless they are finite."""
        self._row()

    def _row(self) -> NDArray[np.float32]:
        if not self.has_logits:  # llama.cpp would abort the process
            raise BackendError("there are no logits before the first token")
        return read_logits(self.handle, self.row, self._lanes.vocabulary_size)


class Lanes:
    """Up to `count` lanes of `capacity` positions each, over a decoder's weights; `close()` frees them.

    OutOfMemoryError if there is no memory for them.
    """

    def __init__(self, decoder: Decoder, count: int, capacity: int) -> None:
        self.count = count
        self.live: list[Lane] = []
        """Those that hold something, each at the place of its number."""
        self._decoder, self._llama = decoder, llama.library()
        self.vocabulary_size, self.batch_size = decoder.vocabulary.size, decoder.options.batch_size
        self.capacity = rounded(capacity)
        self.handle: Any = self._make_context()

    def close(self) -> None:
        """Free the context; nothing can be done with its lanes afterwards."""
        handle, self.handle = self.handle, None
        self.live.clear()
        if handle is not None:
            self._llama.llama_free(handle)

    def take_over(self) -> Lane | None:
        """A new lane with all that the decoder holds; None if llama.cpp's states are not as expected."""
        assert len(self.live) < self.count
        assert self._decoder.position <= self.capacity
        state = spread_state(self._decoder.handle, read_state(self._decoder.handle), self.count)
        number = len(self.live)
        if state is None or write_state(self.handle, state, number) != state.nbytes:
            self._remove(number)
            return None
        self.live.append(Lane(self, number, self._decoder.position))
        return self.live[-1]

    def drop(self, lane: Lane) -> None:
        """Forget what a lane holds. The last one takes its place, since llama.cpp computes neighbours together."""
        last, number, lane.row = self.live.pop(), lane.number, -1
        self._remove(number)
        if last is not lane:
            state = read_state(self.handle, last.number)
            self._remove(last.number)
            self._put(state, number)
            last.number, self.live[number] = number, last

    def renew(self, capacity: int = 0) -> None:
        """Make the context anew, with what the lanes hold, and with room for at least `capacity` positions in each.

        Numbers that are no numbers stay in a cache, and zero times NaN would spoil the next answer too.
        OutOfMemoryError if there is no room for it; without room for what there was either, nothing is left.
        """
        live, before = list(self.live), self.capacity
        states = [read_state(self.handle, lane.number) for lane in live]
        self.close()
        self.capacity = max(before, rounded(capacity))
        try:
            self.handle = self._make_context()
        except OutOfMemoryError:
            if self.capacity == before:
                raise
            self.capacity = before
            self.handle = self._make_context()
            raise
        finally:
            if self.handle is not None:
                self._put_back(live, states)

    def decode(self, tokens: Sequence[tuple[Lane, int]]) -> None:
        """Append tokens to lanes; the last one of each lane has logits then, and no other lane has any.

        BackendError if llama.cpp fails.
        """
        for lane in self.live:
            lane.row = -1
        self._reserve(tokens)
        last = {lane: place for place, (lane, _) in enumerate(tokens)}
        batch = self._llama.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for place, (lane, token) in enumerate(tokens):
                batch.token[place], batch.pos[place] = token, lane.position
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, lane.number
                batch.logits[place] = last[lane] == place
                lane.position += 1
            llama.forget_errors()
            status = self._llama.llama_decode(self.handle, batch)
        finally:
            self._llama.llama_batch_free(batch)
        if status != 0:
            raise BackendError(f"llama.cpp could not decode (status {status}): {llama.recent_errors()}")
        for lane, place in last.items():
            lane.row = place

    def _reserve(self, tokens: Sequence[tuple[Lane, int]]) -> None:
        """Have room for tokens that are appended."""
        counts = Counter(lane for lane, _ in tokens)
        need = max(lane.position + count for lane, count in counts.items())
        if need > self.capacity:
            self.renew(need + _GROWTH)

    def agrees_with_one_more(self, token: int, expected: NDArray[np.float32]) -> bool:
        """Whether one lane more, and all before it, give these logits behind what the decoder holds, to the bit."""
        if self.take_over() is None:
            return False
        self.decode([(lane, token) for lane in self.live])
        same = all(np.array_equal(lane.last_logits(), expected) for lane in self.live)
        for lane in self.live:
            lane.position -= 1
            self._remove(lane.number, lane.position)
        return same

    def _make_context(self) -> Any:
        options = self._decoder.options
        parameters = context_parameters(options, flash=self._decoder.uses_flash)
        parameters.n_ctx = self.capacity * self.count
        parameters.n_batch = max(self.count, options.batch_size)
        parameters.n_ubatch = max(self.count, options.rows_at_once)
        parameters.n_outputs_max = self.count
        parameters.n_seq_max, parameters.kv_unified = self.count, False
        return self._decoder.new_context(parameters)

    def _put_back(self, live: list[Lane], states: Sequence[NDArray[np.uint8]]) -> None:
        for lane, state in zip(live, states, strict=True):
            self._put(state, lane.number)
            lane.row = -1
        self.live = live

    def _put(self, state: NDArray[np.uint8], number: int) -> None:
        if write_state(self.handle, state, number) != state.nbytes:
            raise BackendError(f"llama.cpp could not move a KV cache: {llama.recent_errors()}")

    def _remove(self, number: int, start: int = -1) -> None:
        self._llama.llama_memory_seq_rm(self._llama.llama_get_memory(self.handle), number, start, -1)


def lanes_agree(decoder: Decoder, count: int) -> bool:
    """Whether up to `count` lanes give a decoder's logits to the bit: tried with a few tokens; it is clear then.

    With each number of lanes that there may be, since llama.cpp chooses kernels by it. llama.cpp's own flash attention
    is taken for one that does not agree: behind 512 keys, far more than is tried, it computes one token otherwise.
    OutOfMemoryError if there is no memory for them.
    """
    if decoder.uses_flash and not decoder.attends:
        return False
    decoder.clear()
    size = decoder.vocabulary.size
    decoder.decode_tokens([token % size for token in range(_TRIAL)])
    decoder.decode_tokens([_TRIAL % size])
    expected = decoder.last_logits()
    decoder.cut(_TRIAL)
    try:
        with closing(Lanes(decoder, count, _TRIAL + 1)) as lanes:
            return all(lanes.agrees_with_one_more(_TRIAL % size, expected) for _ in range(count))
    finally:
        decoder.clear()


def rounded(capacity: int) -> int:
    """The positions that a lane for so many takes memory for."""
    return -(-capacity // _STEP) * _STEP
