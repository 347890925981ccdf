"""Answers as OpenAI's dictionaries: completions and chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ayaedge.answers import Answer
    from ayaedge.engine.streams import AnswerStream
    from ayaedge.text.text_stream import Piece, TokenLogprob


_LEAST_LOGPROB = -9999.0
"""What OpenAI's service writes for a token that is practically impossible; JSON has no infinity."""


def completion(answer: Answer, *, model: str) -> dict[str, Any]:
    """An answer as a `chat.completion`.

    Beside OpenAI's fields stand our own: `timings` in seconds, `tiles` of each image, and in `usage` the tokens of
    images and the turns that were dropped to make room. An answer that was cancelled is unfinished and has the
    finish_reason `length`, as OpenAI has no name for it.
    """
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": _logprobs(answer.logprobs),
        "finish_reason": _finish_reason(answer),
    }
    return {
        **_head("chat.completion", model),
        "choices": [choice],
        "usage": _usage(answer),
        **_own_fields(answer),
    }


class ChunkMaker:
    """Makes the `chat.completion.chunk`s of one answer: `opening`, then `of` each piece, then `closing`."""

    def __init__(self, *, model: str, include_usage: bool = False):
        self._head = _head("chat.completion.chunk", model)
        self._include_usage = include_usage

    def all_of(self, answer: AnswerStream) -> Iterator[dict[str, Any]]:
        """All chunks of an answer as they come; ending them early cancels it."""
        with answer:
            yield self.opening()
            for piece in answer:
                yield self.of(piece)
            yield from self.closing(answer.answer)

    def opening(self) -> dict[str, Any]:
        """The first chunk, which says whose turn it is."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def of(self, piece: Piece) -> dict[str, Any]:
        """A chunk with the text of a piece, and the probabilities of its tokens if the piece has them."""
        return self._chunk({"content": str(piece)}, logprobs=_logprobs(piece.logprobs))

    def closing(self, answer: Answer) -> list[dict[str, Any]]:
        """The last chunks: why the answer ended and, if asked for, its usage; our own fields are in the last one."""
        last = [self._chunk({}, finish_reason=_finish_reason(answer))]
        if self._include_usage:
            last.append({**self._head, "choices": [], "usage": _usage(answer)})
        last[-1].update(_own_fields(answer))
        return last

    def aside(self, **fields: Any) -> dict[str, Any]:
        """A chunk that says something about the answer, and has none of its text."""
        return {**self._head, "choices": [], **fields, **({"usage": None} if self._include_usage else {})}

    def _chunk(
        self,
        delta: dict[str, Any],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self._include_usage else {})}


def chunks(
    pieces: Iterable[Piece], finished: Callable[[], Answer], *, model: str, include_usage: bool = False
) -> Iterator[dict[str, Any]]:
    """An answer that is being written as `chat.completion.chunk`s; `finished` is called when the pieces have ended."""
    maker = ChunkMaker(model=model, include_usage=include_usage)
    yield maker.opening()
    for piece in pieces:
        yield maker.of(piece)
    yield from maker.closing(finished())


def _head(kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(16)}", "object": kind, "created": int(time.time()), "model": model,
    }  # fmt: skip


def _finish_reason(answer: Answer) -> str:
    return "stop" if answer.stop_reason == "stop" else "length"


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
        "dropped_turns": usage.dropped_turns,
    }


def _own_fields(answer: Answer) -> dict[str, Any]:
    return {"timings": asdict(answer.timings), "tiles": list(answer.usage.tiles)}


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not tokens:
        return None
    content = [{**_logprob(token), "top_logprobs": [_logprob(top) for top in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    logprob = max(_LEAST_LOGPROB, token.logprob)  # in this order, a NaN gives the least one too
    return {"token": token.text, "bytes": list(token.data), "logprob": logprob}
