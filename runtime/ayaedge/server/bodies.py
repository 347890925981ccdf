"""Reading a body within bounds, while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.types import Receive

from ayaedge.server.desk import Ticket
from ayaedge.server.options import Limits
from ayaedge.server.refusals import RequestRefusedError
from ayaedge.untrusted.json_text import parse_json


class ClientGoneError(Exception):
    """The client closed the connection, and nobody waits for a response."""


async def read_body(receive: Receive, declared: str | None, ticket: Ticket, limits: Limits) -> bytes:
    """The body of a request; 413 as soon as it is too large, also by what its head declares, 408 if it is too slow."""
    if declared is not None and declared.isdecimal() and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    try:
        return await asyncio.wait_for(_read(receive, ticket, limits), limits.body_seconds)
    except TimeoutError:
        raise RequestRefusedError("the body did not come in time", status=408) from None


async def _read(receive: Receive, ticket: Ticket, limits: Limits) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        if len(body) + len(part) > limits.body_bytes:
            raise _too_large(limits)
        ticket.hold(len(part))
        body += part
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limits: Limits) -> RequestRefusedError:
    return RequestRefusedError(f"a body may have {limits.body_bytes} bytes", status=413, code="too_large")


def object_of(body: bytes) -> Mapping[str, Any]:
    """The object of JSON that a body is."""
    try:
        value = parse_json(body)
    except ValueError as error:
        raise RequestRefusedError(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise RequestRefusedError("the body is not an object of JSON")
    return value


async def until_gone(receive: Receive) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
