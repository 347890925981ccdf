"""Prompt lookup: guesses of the next tokens, taken from what stands in the prompt and the answer already.

An answer that copies (a transcription in two languages, a list, JSON with the same keys) repeats runs of tokens. The
decoder checks several guesses in one step for less than the price of one step each. Source of the idea: prompt lookup
decoding (Saxena 2023). Whether it pays depends on the machine and on the answer, so both are watched.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ayaedge.decoder.decoder import Decoder

_NGRAM = 3
"""Tokens that must have occurred before, in this order."""
_TRIALS = 4
"""Steps with guesses before their yield is judged."""
_REST = 32
"""Plain steps after guesses that did not pay."""


class LookupDecoder:
    """Decodes the likeliest tokens of an answer, several in one step where guesses pay.

    Each token is the likeliest after those before it, so guessing changes nothing but the rounding of logits: a guess
    is computed with a few others, a token without guesses alone.
    """

    def __init__(self, decoder: Decoder, prompt: Sequence[int], image: int) -> None:
        """`prompt` are the ids that the decoder holds, `image` the one that stands for an image embedding."""
        self._decoder = decoder
        self._lookup, self._worth = PromptLookup(prompt, image), Worth()
        self._most = min(decoder.options.draft_tokens, decoder.options.batch_size - 1)

    def decode(self, token: int, limit: int) -> list[int]:
        """Append a token, and return those that follow: at least one, at most `limit`.

        The decoder holds all of them but the last.
        """
        decoder = self._decoder
        self._lookup.push(token)
        room = min(self._most, limit - 1, decoder.context_size - decoder.position - 1)
        guesses = self._lookup.guess(room) if room > 0 and self._worth.allows() else []
        started, start = time.perf_counter(), decoder.position
        decoder.decode_tokens([token, *guesses], all_logits=bool(guesses))
        right = decoder.likeliest()
        kept = next((i for i, guess in enumerate(guesses) if guess != right[i]), len(guesses))
        if kept < len(guesses):
            decoder.cut(start + 1 + kept)
        seconds = time.perf_counter() - started
        if guesses:
            self._worth.guessed(seconds, 1 + kept)
        else:
            self._worth.plain(seconds)
        for guess in guesses[:kept]:
            self._lookup.push(guess)
        return [*guesses[:kept], right[kept]]


class PromptLookup:
    """The tokens of a prompt and its answer, with where each run of `_NGRAM` of them occurred last.

    Positions inside images are no tokens and end every run.
    """

    def __init__(self, ids: Sequence[int], image: int) -> None:
        self._image = image
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """Append a token."""
        run = tuple(self._ids[-_NGRAM:])  # of the tokens before: what follows it is `token`
        if len(run) == _NGRAM and self._image not in run and token != self._image:
            self._places[run] = len(self._ids)
        self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """At most `most` tokens that followed the same run earlier."""
        place = self._places.get(tuple(self._ids[-_NGRAM:]))
        if place is None:
            return []
        found = self._ids[place : place + most]
        return found[: found.index(self._image)] if self._image in found else found


class Worth:
    """Whether guessing pays: seconds per token of steps with guesses against those without."""

    def __init__(self) -> None:
        self._plain: float | None = None
        self._seconds = self._tokens = 0.0
        self._trials = self._rest = 0

    def allows(self) -> bool:
        """Whether the next step may guess."""
        if self._plain is None:  # one plain step first, to compare with
            return False
        if self._rest:
            self._rest -= 1
            return False
        return True

    def plain(self, seconds: float) -> None:
        """Note a step without guesses."""
        self._plain = seconds if self._plain is None else 0.8 * self._plain + 0.2 * seconds

    def guessed(self, seconds: float, tokens: int) -> None:
        """Note a step that gave `tokens` tokens; after several that did not pay there is a rest."""
        self._seconds, self._tokens, self._trials = (
            self._seconds + seconds,
            self._tokens + tokens,
            self._trials + 1,
        )
        if self._trials >= _TRIALS:
            if self._seconds > self._tokens * (self._plain or 0.0):
                self._rest = _REST
            self._seconds = self._tokens = 0.0
            self._trials = 0
