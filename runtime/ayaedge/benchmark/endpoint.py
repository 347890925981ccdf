"""A judge behind an OpenAI-compatible endpoint: the one place of ayaedge that sends anything anywhere, when asked to.

It sends to the host that the user named and to no other: redirections are not followed, and what is for this machine
passes no proxy.
"""

from __future__ import annotations

import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from ayaedge.errors import BackendError, InvalidOptionError
from ayaedge.untrusted.json_text import parse_json

KEY_VARIABLE = "AYAEDGE_JUDGE_KEY"
"""The environment variable that holds a judge's key: others see a flag."""
_COMPLETIONS = "/chat/completions"
_SECONDS = 600.0
_MOST_BYTES = 1 << 24
_LONGEST_WAIT = 60.0
_PASSING = (408, 409, 425, 429)
"""Statuses that may be gone the next time, as those of 500 and more."""
_SHOWN = 300


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Send nothing to a place that nobody named."""


@dataclass(frozen=True)
class JudgeEndpoint:
    """Where a judge is asked, and which one; InvalidOptionError for a URL that is none."""

    url: str
    """The base of its API, `http://127.0.0.1:8080/v1`."""
    model: str
    key: str | None = field(default=None, repr=False)
    wait: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise InvalidOptionError(f"a judge's URL is like http://127.0.0.1:8080/v1, not {self.url!r}")
        if self.key is not None and parts.scheme == "http" and not self.is_local:
            raise InvalidOptionError(
                f"{self.host} would get the key in {KEY_VARIABLE} unencrypted: use https"
            )
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise InvalidOptionError(f"the key in {KEY_VARIABLE} has characters that no header may have")

    @property
    def host(self) -> str:
        """The host that gets what is sent."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_local(self) -> bool:
        """Whether that is this machine, by its loopback address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def complete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The chat completion that the endpoint answers with.

        BackendError for what may go well the next time, InvalidOptionError for a request that it refuses.
        """
        body = json.dumps({"model": self.model, **request}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "ayaedge"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        posted = urllib.request.Request(self._address, body, headers)
        try:
            with self._opener().open(posted, timeout=_SECONDS) as response:
                return self._understood(response.read(_MOST_BYTES + 1))
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, HTTPException) as error:
            raise BackendError(f"the judge at {self.host} cannot be reached: {error}") from None

    @property
    def _address(self) -> str:
        base = self.url.rstrip("/")
        return base if base.endswith(_COMPLETIONS) else base + _COMPLETIONS

    def _opener(self) -> urllib.request.OpenerDirector:
        handlers: list[urllib.request.BaseHandler] = [_NoRedirection()]
        if self.is_local:
            handlers.append(urllib.request.ProxyHandler({}))
        return urllib.request.build_opener(*handlers)

    def _understood(self, data: bytes) -> dict[str, Any]:
        try:
            if len(data) > _MOST_BYTES:
                raise ValueError(f"it has more than {_MOST_BYTES} bytes")
            answer = parse_json(data)
            (choice,) = answer["choices"]
            text = choice["message"]["content"]
        except (ValueError, TypeError, KeyError) as error:
            raise BackendError(
                f"the judge at {self.host} did not answer with a chat completion: {error}"
            ) from None
        message = {"role": "assistant", "content": text if isinstance(text, str) else ""}
        return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": None}

    def _refused(self, error: urllib.error.HTTPError) -> BackendError | InvalidOptionError:
        said = error.read(_SHOWN).decode("utf-8", "replace").strip()
        message = f"the judge at {self.host} answered {error.code} {error.reason}: {said}"
        if error.code in _PASSING or error.code >= 500:
            self.wait(_seconds(error.headers.get("Retry-After")))
            return BackendError(message)
        return InvalidOptionError(message)


def _seconds(text: str | None) -> float:
    """What `Retry-After` asks for, within reason; a date, and nothing, are a second."""
    try:
        return min(_LONGEST_WAIT, max(0.0, float(text or 1)))
    except ValueError:
        return 1.0
