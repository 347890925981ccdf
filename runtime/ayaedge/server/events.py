"""Streams of a response: server-sent events and lines of JSON."""

from __future__ import annotations

import json
from typing import Any

from ayaedge.server.progress import Progress

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


def to_json(value: Any) -> bytes:
    """A value as one line of UTF-8."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def event(value: Any, name: str | None = None) -> bytes:
    """One event, with a name where a surface has them. https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + to_json(value) + b"\n\n"


def comment(progress: Progress) -> bytes:
    """A line that clients pass over, and that keeps them waiting: what is being done, as JSON where there is more."""
    if not progress.of:
        return f": {progress.step}\n\n".encode()
    return b": " + to_json(progress.to_dict()) + b"\n\n"
