"""Where a server listens, who may use it, and what a request may cost."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ayaedge.checks import check_options, real_number, whole_number
from ayaedge.model import QUEUE_SIZE

_SECONDS = "a number of seconds above 0"


@dataclass(frozen=True)
class Limits:
    """What requests may cost; whatever is more is refused before it is computed."""

    body_bytes: int = 32 << 20
    """Largest body of a request."""
    image_bytes: int = 24 << 20
    """Largest file of an image."""
    pixels: int = 64_000_000
    """Of one image."""
    images: int = 32
    """In one request."""
    tokens: int | None = None
    """Most tokens of an answer; None leaves that to the context."""
    queue: int = 16
    """Requests that may wait, besides the one that is answered."""
    seconds: float = 3600.0
    """For a request, waiting included."""
    body_seconds: float = 60.0
    """For a body to come."""
    head_seconds: float = 20.0
    """For the head of a request to come."""
    connections: int = 512
    """That are open at a time."""

    @property
    def total_bytes(self) -> int:
        """Bodies of all requests that are held at a time."""
        return 4 * self.body_bytes

    def __post_init__(self) -> None:
        whole = ("body_bytes", "image_bytes", "pixels", "images", "connections")
        check_options(
            *(whole_number(name, getattr(self, name), least=1) for name in whole),
            whole_number("queue", self.queue, least=1, most=QUEUE_SIZE),
            whole_number("tokens", self.tokens, least=1, optional=True),
            *(
                real_number(name, getattr(self, name), above=0, limits=_SECONDS)
                for name in ("seconds", "body_seconds", "head_seconds")
            ),
        )


@dataclass(frozen=True)
class ServerOptions:
    """Where a server listens, and who may use it; InvalidOptionError if strangers could without having been let in."""

    host: str = "127.0.0.1"
    port: int = 8080
    """0 takes one that is free."""
    api_key: str | None = field(default=None, repr=False)
    """What requests must show, as `Authorization: Bearer KEY` or `x-api-key: KEY`."""
    no_auth: bool = False
    """Let everybody in who reaches the host, without a key."""
    allow_origins: tuple[str, ...] = ()
    """Web pages of other origins that may ask; `*` are all."""
    local_files: tuple[Path, ...] = ()
    """Directories whose images requests may name."""
    grace: float = 10.0
    """Seconds that running requests have to end when the server stops."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check_options(
            whole_number("port", self.port, least=0, most=65535),
            real_number("grace", self.grace, above=0, limits=_SECONDS),
            "api_key is empty" if self.api_key is not None and not self.api_key.strip() else None,
            None
            if self.api_key is None or self.api_key.isascii()
            else "api_key has other characters than ASCII",
            *(_origin_fault(origin) for origin in self.allow_origins),
        )
        if not (is_loopback(self.host) or self.api_key or self.no_auth):
            check_options(
                f"other computers can reach the host {self.host}: set api_key, or no_auth to let everybody in"
            )


def is_loopback(host: str) -> bool:
    """Whether a host is this computer alone: a name or an address as it stands in options, URLs or sockets."""
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.lower() == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _origin_fault(origin: str) -> str | None:
    parts = urlsplit(origin)
    if origin == "*" or (parts.scheme and parts.netloc and not parts.path):
        return None
    return f"an allowed origin is like https://example.org, or *, not {origin!r}"
