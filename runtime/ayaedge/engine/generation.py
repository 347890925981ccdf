"""How an answer is written: token by token behind a prompt that the decoder holds, and as text as it comes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ayaedge.answers import Answer, StopReason, Timings, Usage
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.prompt_lookup import LookupDecoder
from ayaedge.decoder.sampling import Sampler, token_logprob
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
    # 1. The limit: what was asked for, or the end of the context.
    room = decoder.context_size - len(prompt)
    limit = room if options.max_tokens is None else min(options.max_tokens, room)
    # 2. Who turns tokens into text, and who guesses tokens that are copied.
    stream = TextStream(decoder.vocabulary.piece, hidden={*tokens.hidden, *tokens.stop}, stop=options.stop)
    lookup = _lookup(decoder, prompt, tokens.image_patch, options)
    written, ahead = Written(), deque[int]()
    try:
        while True:
            request.cancellation.check()
            # 3. The next token: the one that is known already, or one that is chosen by its logits (vocabulary,).
            token, logprob = ahead.popleft() if ahead else sampler.sample(decoder), None
            if (count := options.top_logprobs) is not None:
                logprob = token_logprob(decoder.last_logits(), token, count, decoder.vocabulary.piece)
            if not written.ids:
                written.first = time.perf_counter()
            written.ids.append(token)
            # 4. The end of the turn, or else text, in which a stop string may be complete.
            if token not in tokens.stop:
                _give(stream.push(token, logprob), written, request)
            if token in tokens.stop or stream.stopped:
                written.stop_reason = "stop"
                break
            if len(written.ids) == limit:
                break
            # 5. The decoder reads the token; it holds all but the last of those that are known ahead.
            if not ahead:
                ahead.extend(_decode(decoder, sampler, lookup, token, limit - len(written.ids), options))
    except CancelledError:
        written.stop_reason = "cancelled"
    finally:
        # 6. What the decoder holds of the answer, guesses behind its end left out.
        end = len(prompt) + len(written.ids)
        if decoder.position > end:
            decoder.cut(end)
        held = max(decoder.position - len(prompt), 0)
        known.answered(written.ids[:held], worth_keeping=goes_on)
    # 7. The text that was held back; of several stop strings that overlap, one may show only now.
    if not stream.stopped:
        _give(stream.finish(), written, request)
    if written.stop_reason == "length" and stream.stopped:
        written.stop_reason = "stop"
    written.stop_string = stream.stop_string
    return written


def _give(piece: Piece | None, written: Written, request: AnswerRequest) -> None:
    if piece is not None:
        written.pieces.append(piece)
        request.give(piece)


def _decode(
    decoder: Decoder,
    sampler: Sampler,
    lookup: LookupDecoder | None,
    token: int,
    room: int,
    options: AnswerOptions,
) -> Sequence[int]:
    """Decode a token in one step with those that a grammar demands behind it; gives these, and the one after them.

    They are computed with each other instead of one by one, which changes how their logits are rounded, not which
    tokens they are. Where log-probabilities are asked for each goes alone, since each needs its logits.
    """
    if lookup:
        return lookup.decode(token, room)
    forced = sampler.forced()[:room] if options.top_logprobs is None else ()
    if len(forced) == room:
        decoder.decode_tokens([token, *forced[:-1]])
        return forced
    decoder.decode_tokens([token, *forced])
    return [*forced, sampler.sample(decoder)] if forced else ()


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
