"""The page at `/`: files of this package, sent as they are; a browser runs no other script and asks no other server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""Content-Security-Policy: no text can become a script or a tag, and nothing is fetched from elsewhere."""
_HEADERS = {
    "content-security-policy": POLICY,
    "cache-control": "no-cache",  # kept, but asked for by its ETag each time
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}
_UNCHANGED = 304


@dataclass(frozen=True)
class _File:
    data: bytes
    media_type: str

    async def __call__(self, request: Request) -> Response:
        tag = f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'
        headers = {**_HEADERS, "etag": tag}
        known = (
            one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")
        )
        if tag in known:
            return Response(status_code=_UNCHANGED, headers=headers)
        return Response(self.data, media_type=self.media_type, headers=headers)


def page_routes() -> list[Route]:
    """The page and its files, by path; all of them are read once, here."""
    folder = files("ayaedge.server").joinpath("static")
    found = {
        one.name: _File(one.read_bytes(), _TYPES[one.name.rpartition(".")[2]]) for one in folder.iterdir()
    }
    routes = [Route(f"/static/{name}", file.__call__) for name, file in found.items() if name != "index.html"]
    return [Route("/", found["index.html"].__call__), *routes]


def is_page(path: str) -> bool:
    """Whether a path is the page's own: it needs no key, and asks people for theirs."""
    return path == "/" or path.startswith("/static/")
