"""Anthropic's messages. https://docs.anthropic.com/en/api/messages"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ayaedge.answers import Answer
from ayaedge.checks import brief, require_string, require_strings
from ayaedge.errors import InvalidOptionError, PromptError
from ayaedge.server.asked import Asked, understood
from ayaedge.server.events import SSE, comment, event
from ayaedge.server.progress import Progress
from ayaedge.server.refusals import RequestRefusedError
from ayaedge.text.text_stream import Piece

_SAME = (
    "model", "stream", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "tools", "tiles", "max_tiles",
    "budget", "overflow", "grammar", "choices",
)  # fmt: skip
"""Options that OpenAI and ayaedge call the same."""


class Messages:
    """`POST /v1/messages`: a surface."""

    def asked(self, body: Mapping[str, Any], local_files: Sequence[Path]) -> Asked:
        """See `Surface`."""
        options = {name: body[name] for name in _SAME if name in body}
        if body.get("stop_sequences") is not None:
            options["stop"] = require_strings("stop_sequences", body["stop_sequences"])
        choice = body.get("tool_choice")
        options["tool_choice"] = choice.get("type") if isinstance(choice, dict) else choice
        options["response_format"] = _form(body.get("output_config"))
        _check_thinking(body.get("thinking"))
        messages = body.get("messages")
        if isinstance(messages, list):  # places in errors are those of the body, before the system's message
            messages = [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]
        return understood(messages, options, local_files).told(_system(body.get("system")))

    def writer(self, _asked: Asked, model: str) -> MessageWriter:
        """See `Surface`."""
        return MessageWriter(model)

    def names(self, _body: Mapping[str, Any]) -> Mapping[str, str]:
        """See `Surface`."""
        return {"stop": "stop_sequences", "response_format": "output_config.format"}

    def fault(self, refusal: RequestRefusedError, _body: Mapping[str, Any]) -> dict[str, Any]:
        """See `Surface`."""
        return {"type": "error", "error": {"type": refusal.kind, "message": str(refusal)}}


class MessageWriter:
    """Writes a `message`, whole or as its events: a `Writer`."""

    media_type = SSE

    def __init__(self, model: str):
        self._head = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
        }

    def whole(self, answer: Answer) -> dict[str, Any]:
        """See `Writer`."""
        return {
            **self._head,
            "content": [{"type": "text", "text": answer.text}],
            **_end(answer),
            "usage": _usage(answer),
            **_own_fields(answer),
        }

    def opening(self) -> bytes:
        """See `Writer`. What the prompt took is not known before its end."""
        usage = {"input_tokens": 0, "output_tokens": 0}
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        block = {"type": "text", "text": ""}
        return _event("message_start", message=message) + _event(
            "content_block_start", index=0, content_block=block
        )

    def of(self, piece: Piece) -> bytes:
        """See `Writer`."""
        return _event("content_block_delta", index=0, delta={"type": "text_delta", "text": str(piece)})

    def closing(self, answer: Answer) -> bytes:
        """See `Writer`."""
        delta = _event("message_delta", delta=_end(answer), usage=_usage(answer), **_own_fields(answer))
        return _event("content_block_stop", index=0) + delta + _event("message_stop")

    def alive(self, progress: Progress) -> bytes:
        """See `Writer`. Beside the comment goes the event that Anthropic's own service sends."""
        return comment(progress) + _event("ping")

    def failing(self, refusal: RequestRefusedError) -> bytes:
        """See `Writer`."""
        return _event("error", error={"type": refusal.kind, "message": str(refusal)})


def _event(name: str, **fields: Any) -> bytes:
    return event({"type": name, **fields}, name)


def _end(answer: Answer) -> dict[str, Any]:
    reason = (
        "max_tokens"
        if answer.stop_reason != "stop"
        else "stop_sequence"
        if answer.stop_string
        else "end_turn"
    )
    return {"stop_reason": reason, "stop_sequence": answer.stop_string}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _own_fields(answer: Answer) -> dict[str, Any]:
    return {"timings": asdict(answer.timings), "tiles": list(answer.usage.tiles)}


def _form(config: object) -> dict[str, Any] | None:
    """What `output_config` asks for, as OpenAI's `response_format`."""
    if config is None:
        return None
    form = config.get("format") if isinstance(config, dict) else config
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise InvalidOptionError(f"output_config.format must be a json_schema, not {brief(form)}")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": form.get("schema")}}


def _check_thinking(thinking: object) -> None:
    if thinking is not None and not (isinstance(thinking, dict) and thinking.get("type") == "disabled"):
        raise InvalidOptionError("thinking must be disabled: Aya Vision does not reason before it answers")


def _system(system: object) -> str:
    if isinstance(system, list):
        return "".join(_system_text(block, f"system[{number}]") for number, block in enumerate(system))
    return require_string("system", "" if system is None else system)


def _system_text(block: object, place: str) -> str:
    if not isinstance(block, dict) or block.get("type") != "text":
        raise PromptError(f"{place} must be a block of text, not {brief(block)}")
    return require_string(f"{place}.text", block.get("text"))


def _message(message: object, place: str) -> object:
    """A message in OpenAI's form; what is wrong but for images is left for its reader to say."""
    if not isinstance(message, dict):
        return message
    if message.get("role") not in ("user", "assistant"):
        raise PromptError(f"{place}.role must be one of user, assistant, not {brief(message.get('role'))}")
    content = message.get("content")
    if isinstance(content, list):
        content = [_block(block, f"{place}.content[{number}]") for number, block in enumerate(content)]
    return {"role": message["role"], "content": content}


def _block(block: object, place: str) -> object:
    if not isinstance(block, dict):
        return block
    if block.get("type") not in ("image", "document"):
        return {name: value for name, value in block.items() if name in ("type", "text")}
    source = block.get("source")
    if not isinstance(source, dict):
        raise PromptError(f"{place}.source must be an object, not {brief(source)}")
    if source.get("type") == "url":
        return {"type": "image_url", "image_url": source.get("url")}
    if source.get("type") != "base64":
        raise PromptError(f"{place}.source.type must be base64, not {brief(source.get('type'))}")
    data = require_string(f"{place}.source.data", source.get("data"))
    return {"type": "image_url", "image_url": f"data:any/any;base64,{data}"}
