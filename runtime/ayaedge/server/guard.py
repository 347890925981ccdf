"""Who may ask: a Host that is this server's own, an origin that was allowed, a key that is right.

All of it is decided by the head of a request; nothing of a body is read before.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ayaedge.server.chat_completions import openai_fault
from ayaedge.server.endpoint import Response
from ayaedge.server.options import ServerOptions, is_loopback
from ayaedge.server.page import is_page
from ayaedge.server.refusals import RequestRefusedError

_PORTS = {"http": 80, "https": 443}
OPEN_PATHS = ("/health",)
"""Need no key: they say nothing of anybody's requests."""


class HostGuard:
    """Refuses pages of other sites: those that are not allowed, and those whose name was bound to this machine.

    A browser sends what a page asks for to whatever address the page's own name has, so that a name which is made to
    stand for 127.0.0.1 would be let in; its Host tells.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions):
        self._app, self._options = app, options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if not (self._is_own(headers.get("host", ""), scope) and self._may(headers)):
                await _refuse(
                    send, RequestRefusedError("this Host or Origin is not allowed here", status=403, code="forbidden")
                )  # fmt: skip
                return
        await self._app(scope, receive, send)

    def _is_own(self, host: str, scope: Scope) -> bool:
        address, port = scope.get("server") or ("127.0.0.1", None)
        if not is_loopback(str(address)):
            return True
        name, _, given = host.rpartition(":") if _has_port(host) else (host, "", "")
        right = given == str(port) if given else port in (_PORTS["http"], None)
        return right and (is_loopback(name) or name.lower() == self._options.host.lower())

    def _may(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None or "*" in self._options.allow_origins or origin in self._options.allow_origins:
            return True
        return origin != "null" and urlsplit(origin).netloc == headers.get("host")


class KeyGuard:
    """Refuses requests that do not show the key; how long that takes says nothing about it."""

    def __init__(self, app: ASGIApp, options: ServerOptions):
        self._app = app
        self._digest = None if options.api_key is None else _digest(options.api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digest is not None and not _is_open(scope["path"]):
            headers = Headers(scope=scope)
            kind, _, bearer = headers.get("authorization", "").partition(" ")
            given = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
            if not hmac.compare_digest(_digest(given), self._digest):
                await _refuse(
                    send, RequestRefusedError("the API key is missing or wrong", status=401, code="invalid_api_key")
                )  # fmt: skip
                return
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or is_page(path)


def _digest(key: str) -> bytes:
    """Of the same length for every key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _has_port(host: str) -> bool:
    return ":" in host.rpartition("]")[2]


async def _refuse(send: Send, refusal: RequestRefusedError) -> None:
    fault = {"type": "error", **openai_fault(refusal, {})}  # as Anthropic's clients read it too
    await Response(send).whole(
        fault, refusal.status, {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
    )
