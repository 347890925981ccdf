"""OpenAI's chat completions. https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ayaedge.answers import Answer
from ayaedge.checks import require_flag
from ayaedge.openai.completions import ChunkMaker, completion
from ayaedge.server.asked import Asked, understood
from ayaedge.server.events import SSE, comment, event
from ayaedge.server.progress import Progress
from ayaedge.server.refusals import RequestRefusedError, place_of
from ayaedge.text.text_stream import Piece

_MESSAGE = ("role", "content", "tool_calls", "function_call")
"""Fields of a message that say something; what others say is passed over."""


class ChatCompletions:
    """`POST /v1/chat/completions`: a surface."""

    def asked(self, body: Mapping[str, Any], local_files: Sequence[Path]) -> Asked:
        """See `Surface`."""
        asked = understood(_known(body.get("messages")), body, local_files)
        wanted = body.get("progress")
        return asked if wanted is None else replace(asked, follow=require_flag("progress", wanted))

    def writer(self, asked: Asked, model: str) -> ChatCompletionWriter:
        """See `Surface`."""
        return ChatCompletionWriter(model, asked)

    def names(self, body: Mapping[str, Any]) -> Mapping[str, str]:
        """See `Surface`."""
        return {"max_tokens": "max_completion_tokens"} if "max_completion_tokens" in body else {}

    def fault(self, refusal: RequestRefusedError, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Surface`."""
        return openai_fault(refusal, body)


class ChatCompletionWriter:
    """Writes `chat.completion` and `chat.completion.chunk`s: a `Writer`."""

    media_type = SSE

    def __init__(self, model: str, asked: Asked):
        self._model, self._follow = model, asked.follow
        self._chunks = ChunkMaker(model=model, include_usage=asked.include_usage)

    def whole(self, answer: Answer) -> dict[str, Any]:
        """See `Writer`."""
        return completion(answer, model=self._model)

    def opening(self) -> bytes:
        """See `Writer`."""
        return event(self._chunks.opening())

    def of(self, piece: Piece) -> bytes:
        """See `Writer`."""
        return event(self._chunks.of(piece))

    def closing(self, answer: Answer) -> bytes:
        """See `Writer`."""
        return b"".join(map(event, self._chunks.closing(answer))) + b"data: [DONE]\n\n"

    def alive(self, progress: Progress) -> bytes:
        """See `Writer`. A comment, or a chunk without choices for clients that asked for `progress`."""
        return event(self._chunks.aside(progress=progress.to_dict())) if self._follow else comment(progress)

    def failing(self, refusal: RequestRefusedError) -> bytes:
        """See `Writer`."""
        return event(openai_fault(refusal, {}))


def openai_fault(refusal: RequestRefusedError, body: Mapping[str, Any]) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    param = place_of(str(refusal), body)
    return {
        "error": {"message": str(refusal), "type": refusal.kind, "param": param, "code": refusal.code},
    }  # fmt: skip


def _known(messages: object) -> object:
    """Messages without fields that are not known, as OpenAI's own service reads them."""
    if not isinstance(messages, list):
        return messages
    return [_only(message, _MESSAGE, content=_parts) for message in messages]


def _parts(content: object) -> object:
    if not isinstance(content, list):
        return content
    return [
        _only(part, ("type", str(part.get("type"))), image_url=lambda url: _only(url, ("url", "detail")))
        if isinstance(part, dict)
        else part
        for part in content
    ]


def _only(value: object, names: Collection[str], **inner: Any) -> object:
    if not isinstance(value, dict):
        return value
    return {name: inner.get(name, _same)(one) for name, one in value.items() if name in names}


def _same(value: object) -> object:
    return value
