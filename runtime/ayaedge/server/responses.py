"""OpenAI's responses, without a memory: each request holds its conversation.

https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ayaedge.answers import Answer
from ayaedge.checks import brief, require_string
from ayaedge.errors import InvalidOptionError, PromptError
from ayaedge.server.asked import Asked, understood
from ayaedge.server.chat_completions import openai_fault
from ayaedge.server.events import SSE, comment, event
from ayaedge.server.progress import Progress
from ayaedge.server.refusals import RequestRefusedError
from ayaedge.text.text_stream import Piece

_SAME = (
    "model", "stream", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "tools", "tool_choice", "tiles",
    "max_tiles", "budget", "overflow", "grammar", "choices",
)  # fmt: skip
"""Options that chat completions call the same."""
_LACKING = ("previous_response_id", "conversation", "background", "prompt")
"""What needs a memory."""
_TEXTS = ("input_text", "output_text", "text")
_KINDS = "input_text, input_image, input_file, output_text"


class Responses:
    """`POST /v1/responses`: a surface."""

    def asked(self, body: Mapping[str, Any], local_files: Sequence[Path]) -> Asked:
        """See `Surface`."""
        for name in _LACKING:
            if body.get(name):
                raise InvalidOptionError(
                    f"{name} cannot be {brief(body[name])}: this server keeps no conversations"
                )
        options = {name: body[name] for name in _SAME if name in body}
        options["max_tokens"] = body.get("max_output_tokens")
        options["response_format"] = _form(body.get("text"))
        instructions = require_string("instructions", body.get("instructions") or "")
        return understood(_messages(body.get("input")), options, local_files).told(instructions)

    def writer(self, _asked: Asked, model: str) -> ResponseWriter:
        """See `Surface`."""
        return ResponseWriter(model)

    def names(self, _body: Mapping[str, Any]) -> Mapping[str, str]:
        """See `Surface`."""
        return {"max_tokens": "max_output_tokens", "messages": "input", "response_format": "text.format"}

    def fault(self, refusal: RequestRefusedError, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Surface`."""
        return openai_fault(refusal, body)


class ResponseWriter:
    """Writes a `response`, whole or as its events: a `Writer`."""

    media_type = SSE

    def __init__(self, model: str):
        self._head = {
            "id": f"resp_{secrets.token_hex(16)}", "object": "response", "created_at": int(time.time()),
            "model": model, "error": None, "instructions": None, "metadata": {}, "parallel_tool_calls": False,
            "previous_response_id": None, "store": False, "tool_choice": "none", "tools": [], "truncation": "disabled",
        }  # fmt: skip
        self._item = f"msg_{secrets.token_hex(16)}"
        self._number = -1

    def whole(self, answer: Answer) -> dict[str, Any]:
        """See `Writer`."""
        cut = answer.stop_reason != "stop"
        return {
            **self._head,
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self._message(answer.text, "incomplete" if cut else "completed")],
            "usage": _usage(answer),
            "timings": asdict(answer.timings),
            "tiles": list(answer.usage.tiles),
        }

    def opening(self) -> bytes:
        """See `Writer`."""
        begun = {
            **self._head,
            "status": "in_progress",
            "incomplete_details": None,
            "output": [],
            "usage": None,
        }
        item = {**self._message("", "in_progress"), "content": []}
        return b"".join(
            [
                self._event("response.created", response=begun),
                self._event("response.in_progress", response=begun),
                self._event("response.output_item.added", output_index=0, item=item),
                self._part("response.content_part.added", part=_text("")),
            ]
        )

    def of(self, piece: Piece) -> bytes:
        """See `Writer`."""
        return self._part("response.output_text.delta", delta=str(piece), logprobs=[])

    def closing(self, answer: Answer) -> bytes:
        """See `Writer`."""
        whole = self.whole(answer)
        return b"".join(
            [
                self._part("response.output_text.done", text=answer.text, logprobs=[]),
                self._part("response.content_part.done", part=_text(answer.text)),
                self._event("response.output_item.done", output_index=0, item=whole["output"][0]),
                self._event(f"response.{whole['status']}", response=whole),
            ]
        )

    def alive(self, progress: Progress) -> bytes:
        """See `Writer`."""
        return comment(progress)

    def failing(self, refusal: RequestRefusedError) -> bytes:
        """See `Writer`."""
        return self._event("error", code=refusal.code, message=str(refusal), param=None)

    def _message(self, text: str, status: str) -> dict[str, Any]:
        said = {"type": "message", "role": "assistant", "content": [_text(text)]}
        return {"id": self._item, "status": status, **said}

    def _part(self, name: str, **fields: Any) -> bytes:
        return self._event(name, item_id=self._item, output_index=0, content_index=0, **fields)

    def _event(self, name: str, **fields: Any) -> bytes:
        self._number += 1
        return event({"type": name, "sequence_number": self._number, **fields}, name)


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _form(text: object) -> dict[str, Any] | None:
    """What `text` asks for, as the `response_format` of chat completions."""
    form = text.get("format") if isinstance(text, dict) else text
    if form is None:
        return None
    if not isinstance(form, dict):
        raise InvalidOptionError(f"text.format must be an object, not {brief(form)}")
    if form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}


def _messages(given: object) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise PromptError(f"input must be a string or a list of messages, not {brief(given)}")
    return [_message(item, f"input[{number}]") for number, item in enumerate(given)]


def _message(item: object, place: str) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise PromptError(
            f"{place} must be a message, not {brief(item.get('type') if isinstance(item, dict) else item)}"
        )
    content = item.get("content")
    if isinstance(content, list):
        content = [_content(part, f"{place}.content[{number}]") for number, part in enumerate(content)]
    elif not isinstance(content, str):
        raise PromptError(f"{place}.content must be a string or a list of parts, not {brief(content)}")
    return {"role": item.get("role"), "content": content}


def _content(part: object, place: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else part
    if isinstance(part, dict) and kind in _TEXTS:
        return {"type": "text", "text": require_string(f"{place}.text", part.get("text"))}
    if isinstance(part, dict) and kind == "input_image":
        return {"type": "image_url", "image_url": require_string(f"{place}.image_url", part.get("image_url"))}
    if isinstance(part, dict) and kind == "input_file":
        data = require_string(f"{place}.file_data", part.get("file_data"))
        return {"type": "image_url", "image_url": data}
    raise PromptError(f"{place}.type must be one of {_KINDS}, not {brief(kind)}")
