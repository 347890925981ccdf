"""Streams of a response: server-sent events and lines of JSON."""

from __future__ import annotations

import json
from typing import Any

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


def to_json(value: Any) -> bytes:
    """A value as one line of UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def event(value: Any, name: str | None = None) -> bytes:
    """One event, with a name where a surface has them. https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + to_json(value) + b"\n\n"


def comment(progress: tuple[str, int, int] | None) -> bytes:
    """A line that clients pass over, and that keeps them waiting: what is being done, as JSON."""
    if progress is None:
        return b": waiting\n\n"
    return b": " + to_json(dict(zip(("step", "done", "of"), progress, strict=True))) + b"\n\n"
