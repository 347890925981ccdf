"""What becomes of errors: a status, and words for the client."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import Mapping
from typing import Any

from ayaedge.errors import (
    AyaEdgeError,
    BusyError,
    CancelledError,
    ClosedError,
    ContextLengthError,
    ImageError,
    InvalidOptionError,
    OutOfMemoryError,
    PromptError,
)

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z_]+")
_PLACE = re.compile(r"[a-z_]+(?:\[\d+\]|\.[a-z_]+)*")
_BAD_REQUEST = 400
_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""What OpenAI's or Anthropic's clients call a status; anything else is `api_error`."""


class RequestRefusedError(AyaEdgeError):
    """A request that is not answered, and with which status."""

    def __init__(
        self, message: str, *, status: int = _BAD_REQUEST, code: str | None = None, wait: int | None = None
    ):
        self.status, self.code = status, code
        self.wait = wait
        """Seconds after which it makes sense to ask again."""
        super().__init__(message)

    def named(self, names: Mapping[str, str]) -> RequestRefusedError:
        """The same about what the client calls an option of ours that the message begins with."""
        head, rest = _split(str(self))
        message = names.get(head, head) + rest
        return RequestRefusedError(message, status=self.status, code=self.code, wait=self.wait)

    @property
    def kind(self) -> str:
        """A name of the status that clients know."""
        return _KINDS.get(self.status, "api_error")

    @property
    def headers(self) -> dict[str, str]:
        """Of its response."""
        return {} if self.wait is None else {"retry-after": str(self.wait)}


_STATUSES: tuple[tuple[type[AyaEdgeError], int, str | None], ...] = (
    (ContextLengthError, _BAD_REQUEST, "context_length_exceeded"),
    (ImageError, _BAD_REQUEST, "invalid_image"),
    (InvalidOptionError, _BAD_REQUEST, None),
    (PromptError, _BAD_REQUEST, None),
    (BusyError, 429, "queue_full"),
    (CancelledError, 503, "stopping"),
    (ClosedError, 503, "stopping"),
    (OutOfMemoryError, 503, "out_of_memory"),
)
"""In this order: the first class that an error is of decides."""


def refusal_of(error: BaseException) -> RequestRefusedError:
    """What the client is told; an error that nobody foresaw is logged, without what it says of the request."""
    if isinstance(error, RequestRefusedError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return RequestRefusedError("the server is stopping", status=503, code="stopping")
    for kind, status, code in _STATUSES:
        if isinstance(error, kind):
            return RequestRefusedError(str(error), status=status, code=code)
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" at {place[0].name}:{place[0].lineno}" if place else ""
    logger.error("a request failed: %s%s", type(error).__name__, where)
    told = str(error) if isinstance(error, AyaEdgeError) else "the server failed; its log says where"
    return RequestRefusedError(told, status=500)


def _split(message: str) -> tuple[str, str]:
    """The name that a message begins with, and the rest."""
    found = _NAME.match(message)
    end = found.end() if found else 0
    return message[:end], message[end:]


def place_of(message: str, body: Mapping[str, Any]) -> str | None:
    """The field that a message begins with, if it is one of a body."""
    found = _PLACE.match(message)
    return found[0] if found and _split(message)[0] in body else None
