"""How an answer is written: token by token behind a prompt that the decoder holds, and as text as it comes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ayaedge.answers import Answer, StopReason, Timings, Usage
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.lanes import Lane
from ayaedge.decoder.prompt_lookup import LookupDecoder
from ayaedge.decoder.sampling import LogitsPlace, Sampler, token_logprob
from ayaedge.engine.prefix_cache import KnownPrefix
from ayaedge.engine.streams import AnswerRequest
from ayaedge.errors import CancelledError
from ayaedge.manifest import Tokens
from ayaedge.options import AnswerOptions
from ayaedge.text.text_stream import Piece, TextStream

logger = logging.getLogger(__name__)


@dataclass
class Written:
    """An answer as far as it has come."""

    first: float = field(default_factory=time.perf_counter)
    """When the first token came; when the prompt was read, before that."""
    ids: list[int] = field(default_factory=list)
    """Every token, the hidden ones and the stop token included."""
    pieces: list[Piece] = field(default_factory=list)
    stop_reason: StopReason = "length"
    stop_string: str | None = None

    def answer(self, usage: Usage, timings: Timings, response_format: object) -> Answer:
        """What the caller gets."""
        logprobs = tuple(logprob for piece in self.pieces for logprob in piece.logprobs)
        text = "".join(self.pieces)
        ended = (self.stop_reason, tuple(self.ids), logprobs, response_format, self.stop_string)
        return Answer(text, usage, timings, *ended)


class AnswerWriter:
    """Makes text of an answer's tokens, for its request, and knows where the answer ends."""

    def __init__(
        self,
        piece_of: Callable[[int], bytes],
        tokens: Tokens,
        options: AnswerOptions,
        request: AnswerRequest,
        room: int,
    ) -> None:
        """`room` is what the context has for tokens of the answer; `piece_of` gives the bytes of a token."""
        self.request = request
        self.written = Written()
        self._piece_of, self._stop, self._logprobs = piece_of, tokens.stop, options.top_logprobs
        self._limit = room if options.max_tokens is None else min(options.max_tokens, room)
        self._stream = TextStream(piece_of, hidden={*tokens.hidden, *tokens.stop}, stop=options.stop)

    @property
    def room(self) -> int:
        """How many more tokens the answer may have."""
        return self._limit - len(self.written.ids)

    def take(self, token: int, place: LogitsPlace) -> bool:
        """Append a token, chosen by the logits of a place; whether the answer goes on behind it."""
        written, logprob = self.written, None
        if self._logprobs is not None:
            logprob = token_logprob(place.last_logits(), token, self._logprobs, self._piece_of)
        if not written.ids:
            written.first = time.perf_counter()
        written.ids.append(token)
        if token not in self._stop:  # text, in which a stop string may be complete
            self._give(self._stream.push(token, logprob))
        if token in self._stop or self._stream.stopped:
            written.stop_reason = "stop"
            return False
        return self.room > 0

    def finish(self) -> Written:
        """The answer with the text that was held back; of stop strings that overlap, one may show only now."""
        if not self._stream.stopped:
            self._give(self._stream.finish())
        if self.written.stop_reason == "length" and self._stream.stopped:
            self.written.stop_reason = "stop"
        self.written.stop_string = self._stream.stop_string
        return self.written

    def _give(self, piece: Piece | None) -> None:
        if piece is not None:
            self.written.pieces.append(piece)
            self.request.give(piece)


def generate(
    decoder: Decoder,
    known: KnownPrefix,
    sampler: Sampler,
    prompt: Sequence[int],
    tokens: Tokens,
    options: AnswerOptions,
    request: AnswerRequest,
    *,
    goes_on: bool,
) -> Written:
    """Write the answer to a prompt that the decoder holds; the request gets its pieces as they come, and may cancel.

    What the decoder holds of the answer becomes a known prefix of the next question, which is likely to come if the
    conversation `goes_on`.
    """
    # 1. Who turns tokens into text, up to what was asked for or the end of the context.
    room = decoder.context_size - len(prompt)
    writer = AnswerWriter(decoder.vocabulary.piece, tokens, options, request, room)
    # 2. Who guesses tokens that are copied.
    lookup = _lookup(decoder, prompt, tokens.image_patch, options)
    written, ahead = writer.written, deque[int]()
    try:
        while True:
            request.cancellation.check()
            # 3. The next token: the one that is known already, or one that is chosen by its logits (vocabulary,).
            token = ahead.popleft() if ahead else sampler.sample(decoder)
            # 4. Its text, or the end.
            if not writer.take(token, decoder):
                break
            # 5. The decoder reads the token; it holds all but the last of those that are known ahead.
            if not ahead:
                ahead.extend(_decode(decoder, sampler, lookup, token, writer.room, options))
    except CancelledError:
        written.stop_reason = "cancelled"
    finally:
        # 6. What the decoder holds of the answer, guesses behind its end left out.
        end = len(prompt) + len(written.ids)
        if decoder.position > end:
            decoder.cut(end)
        held = max(decoder.position - len(prompt), 0)
        known.answered(written.ids[:held], worth_keeping=goes_on)
    # 7. The text that was held back.
    return writer.finish()


def demanded(sampler: Sampler, room: int, options: AnswerOptions) -> Sequence[int]:
    """The tokens that a grammar demands next; none where log-probabilities need the logits of each."""
    return sampler.forced()[:room] if options.top_logprobs is None else ()


def decode_demanded(
    reader: Decoder | Lane, sampler: Sampler, token: int, forced: Sequence[int], room: int
) -> Sequence[int]:
    """Decode a token in one step with those that a grammar demands behind it; gives these, and the one after them.

    They are computed with each other instead of one by one, which changes how their logits are rounded, not which
    tokens they are. There is none after them where they fill the `room`.
    """
    if len(forced) == room:
        reader.decode_tokens([token, *forced[:-1]])
        return forced
    reader.decode_tokens([token, *forced])
    return [*forced, sampler.sample(reader)]


def _decode(
    decoder: Decoder,
    sampler: Sampler,
    lookup: LookupDecoder | None,
    token: int,
    room: int,
    options: AnswerOptions,
) -> Sequence[int]:
    """Decode a token, with others that are known behind it or seem so; gives these, and the one after them."""
    if lookup:
        return lookup.decode(token, room)
    if forced := demanded(sampler, room, options):
        return decode_demanded(decoder, sampler, token, forced, room)
    decoder.decode_tokens([token])
    return ()


def _lookup(
    decoder: Decoder, prompt: Sequence[int], image: int, options: AnswerOptions
) -> LookupDecoder | None:
    """What guesses tokens, if that was wanted and each token of the answer is just the likeliest."""
    if not decoder.options.draft_tokens:
        return None
    if options.sampling.temperature == 0 and options.grammar is None and options.top_logprobs is None:
        return LookupDecoder(decoder, prompt, image)
    logger.warning(
        "guessing (draft_tokens) is for temperature 0 without grammar and log-probabilities; this answer is "
        "chosen token by token"
    )
    return None
