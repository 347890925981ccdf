"""A real server on loopback, in a thread of the tests' own process, and bytes that a client sends it."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ayaedge import AyaVision, DecoderOptions, VisionOptions
from ayaedge.server.options import ServerOptions
from ayaedge.server.serving import Server

CELLS = Path(__file__).parents[1] / "examples" / "pictures" / "six-cells.png"
HEART = CELLS.with_name("one-heart.png")
QUESTION = "What number is at the bottom left?"
ENDLESS = {"grammar": "root ::= a a a a\na ::= [a-z]{2000}", "max_tokens": 6000}
"""Options of an answer that goes on for longer than a test may take."""
PATIENCE = 60.0


def load_demo() -> AyaVision:
    """On one thread: others would wait for each other next to whatever else the machine does."""
    return AyaVision.load(decoder=DecoderOptions(threads=1), vision=VisionOptions(threads=1))


@contextmanager
def served(
    load: Callable[[], AyaVision] = load_demo, *, sleep_after: float | None = None, **options: Any
) -> Iterator[Server]:
    """A server that has loaded its model; it stops at the end of the block."""
    server = Server(load, ServerOptions(port=0, **options), sleep_after=sleep_after)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: get(server.url, "/health").json()["status"] != "loading")
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def until(condition: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait until something is so."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def asking(question: str = QUESTION, *images: Any, **options: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    parts = [{"type": "image_url", "image_url": image} for image in images]
    content = [*parts, {"type": "text", "text": question}]
    return {"messages": [{"role": "user", "content": content}], **options}


@dataclass
class Reply:
    """What a server sent."""

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        return json.loads(self.body)


def head(method: str, path: str, host: str, **headers: str) -> bytes:
    given = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=PATIENCE)


def read_reply(connection: socket.socket) -> Reply:
    """The whole of a response that says how long it is, or that is cut into chunks."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        headers = {}
        while (line := file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        if status == 304:
            return Reply(status, headers, b"")
        if "content-length" in headers:
            return Reply(status, headers, file.read(int(headers["content-length"])))
        body = b""
        while size := int(file.readline(), 16):
            body += file.read(size)
            file.readline()
        return Reply(status, headers, body)


def get(url: str, path: str, **headers: str) -> Reply:
    with connect(url) as connection:
        connection.sendall(head("GET", path, headers.pop("host", urlsplit(url).netloc), **headers))
        return read_reply(connection)


def post(url: str, path: str, body: Any, **headers: str) -> Reply:
    with connect(url) as connection:
        send(connection, url, path, body, **headers)
        return read_reply(connection)


def send(connection: socket.socket, url: str, path: str, body: Any, **headers: str) -> None:
    """Send a request, and read nothing."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    host = headers.pop("host", urlsplit(url).netloc)
    connection.sendall(head("POST", path, host, content_length=str(len(data)), **headers) + data)


def chat(url: str, body: Any, **headers: str) -> Reply:
    return post(url, "/v1/chat/completions", body, **headers)
