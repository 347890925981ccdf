"""What a server refuses, what it costs, and what ends its work: over raw sockets, with clients that mean no good."""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import APIError, OpenAI

from ayaedge import AyaEdgeError, AyaVision, BundleError, InvalidOptionError
from ayaedge.options import answer_options
from ayaedge.server import endpoint
from ayaedge.server.app import SURFACES
from ayaedge.server.openapi import document
from ayaedge.server.options import Limits, ServerOptions
from ayaedge.server.refusals import refusal_of
from ayaedge.server.serving import Server
from served import (
    CELLS,
    ENDLESS,
    HEART,
    QUESTION,
    asking,
    chat,
    connect,
    data_url,
    get,
    head,
    post,
    read_reply,
    send,
    served,
    until,
)

LIMITS = Limits(
    body_bytes=1 << 20, image_bytes=200_000, pixels=1_000_000, images=2, tokens=7000, queue=2, body_seconds=0.6,
    head_seconds=0.6,
)  # fmt: skip
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(limits=LIMITS, local_files=(CELLS.parent,)) as server:
        yield server.url


@pytest.fixture(autouse=True)
def _quick_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "HEARTBEAT", 0.05)


def still(sizes: list[int]) -> bool:
    """Whether no token is computed any more."""
    before = len(sizes)
    time.sleep(0.15)
    return len(sizes) == before


def is_idle(url: str) -> bool:
    return bool(get(url, "/health").json()["requests"] == 0)


def endless(**options: Any) -> dict[str, Any]:
    return asking("?", **ENDLESS, **options)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_ends_its_work(stream: bool, url: str, computed: list[int]) -> None:
    with connect(url) as connection:
        send(connection, url, PATH, endless(stream=stream))
        until(lambda: len(computed) > 20)
    until(lambda: still(computed))
    until(lambda: is_idle(url))
    assert len(computed) < 4000
    assert chat(url, asking(QUESTION, data_url(CELLS))).json()["choices"][0]["message"]["content"] == "2675"


def test_a_client_that_goes_away_while_it_waits_is_never_answered(url: str, computed: list[int]) -> None:
    with connect(url) as first, connect(url) as second:
        send(first, url, PATH, endless(stream=True))
        until(lambda: len(computed) > 20)
        send(second, url, PATH, asking(QUESTION, data_url(CELLS)))
        until(lambda: get(url, "/health").json()["requests"] == 2)
        assert get(url, "/health").json()["status"] == "busy"
        second.close()
        until(lambda: get(url, "/health").json()["requests"] == 1)
        first.close()
    until(lambda: is_idle(url))
    assert max(computed[20:]) == 1  # the image of the second question was never read


def test_who_waits_gets_signs_of_life_and_who_comes_too_late_is_told_when_to_come_again(
    url: str, computed: list[int]
) -> None:
    with connect(url) as first, connect(url) as second, connect(url) as third:
        send(first, url, PATH, endless(stream=True))
        until(lambda: len(computed) > 20)
        send(second, url, PATH, asking(QUESTION, stream=True))
        send(third, url, PATH, asking(QUESTION, data_url(HEART), stream=True))
        until(lambda: get(url, "/health").json()["requests"] == 3)
        refused = chat(url, asking())
        assert refused.status == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert b": waiting\n\n" in second.recv(4096) + second.recv(4096)
        first.close()
        for waiting in (second, third):
            data = b""
            while b"[DONE]" not in data:
                data += waiting.recv(65536)
    until(lambda: is_idle(url))


def test_a_body_that_is_too_large_is_refused_by_what_its_head_says(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head("POST", PATH, urlsplit(url).netloc, content_length=str(10**12)) + b"{")
        assert read_reply(connection).status == 413


def test_a_body_that_never_says_how_long_it_is_is_refused_while_it_comes(url: str) -> None:
    part = b"40000\r\n" + b" " * 0x40000 + b"\r\n"
    with connect(url) as connection:
        connection.sendall(head("POST", PATH, urlsplit(url).netloc, transfer_encoding="chunked"))
        for _ in range(5):
            connection.sendall(part)
        assert read_reply(connection).json()["error"]["type"] == "request_too_large"


def test_half_open_bodies_and_slow_heads_end_while_others_are_served(url: str) -> None:
    with connect(url) as body, connect(url) as slow, connect(url) as nothing:
        body.sendall(head("POST", PATH, urlsplit(url).netloc, content_length="100") + b'{"messages"')
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a")
        assert chat(url, asking("?", max_tokens=1)).status == 200
        assert read_reply(body).status == 408
        assert slow.recv(1) == b""
        assert nothing.recv(1) == b""
    until(lambda: is_idle(url))


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head("POST", PATH, urlsplit(url).netloc, content_length="100") + b'{"messages"')
        until(lambda: get(url, "/health").json()["requests"] == 1)
    until(lambda: is_idle(url))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"text"', b"\xff\xfe\xfd", b'{"messages": NaN}', b'{"a":1,"a":2}', b"[" * 100_000],
)  # fmt: skip
def test_a_body_that_is_no_object_of_json_is_refused(body: bytes, url: str) -> None:
    reply = post(url, PATH, body)
    assert reply.status == 400
    assert "the body is not" in reply.json()["error"]["message"]


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says how many pixels it has, and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_images_beyond_the_limits_are_refused_before_they_are_decoded(url: str, computed: list[int]) -> None:
    def refused(*images: bytes) -> tuple[int, str]:
        urls = [f"data:image/png;base64,{b64encode(image).decode()}" for image in images]
        reply = chat(url, asking(QUESTION, *urls))
        return reply.status, reply.json()["error"]["message"]

    for width, height in ((30_000, 30_000), (1001, 1000)):
        status, message = refused(bomb(width, height))
        assert status == 400
        assert f"{width} x {height} pixels, more than the 1000000" in message
    assert refused(bytes(200_001))[0] == 413
    assert refused(*[HEART.read_bytes()] * 3)[0] == 413
    assert computed == []


def test_more_tokens_than_the_server_gives_are_refused(url: str) -> None:
    assert chat(url, asking("?", max_tokens=7001)).json()["error"]["param"] == "max_tokens"


FORBIDDEN = (
    "http://127.0.0.1:{port}/a.png", "https://127.0.0.1:{port}/a.png", "http://localhost:{port}/", "http://[::1]:{port}/a",
    "HTTP://127.1:{port}/a", " http://2130706433:{port}/a", "http://0x7f000001:{port}", "ftp://127.0.0.1:{port}/a.png",
    "//127.0.0.1:{port}/a.png", "file:///etc/passwd", "file://127.0.0.1/etc/passwd", "file:/etc/passwd", "/etc/passwd",
    "FILE:///etc/passwd", "file:///proc/self/environ", "file://{pictures}/../../pyproject.toml",
    "file://{pictures}/%2e%2e/%2e%2e/pyproject.toml", "file:////server/share/a.png", "file://{pictures}/link.png",
    "{pictures}/../../pyproject.toml", "javascript:alert(1)", "blob:http://127.0.0.1:{port}/a", "",
)  # fmt: skip
"""What a request might name to make the server fetch or read something."""


def test_no_image_is_fetched_and_no_file_read_but_below_the_media_path(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    (tmp_path / "cells.png").write_bytes(CELLS.read_bytes())
    with socket.create_server(("127.0.0.1", 0)) as trap, served(local_files=(tmp_path,)) as server:
        port = trap.getsockname()[1]
        for place in FORBIDDEN:
            named = place.format(port=port, pictures=tmp_path)
            reply = chat(server.url, asking(QUESTION, {"url": named}))
            assert reply.status == 400, named
            assert "root:" not in reply.body.decode()
        trap.settimeout(0.1)
        with pytest.raises(TimeoutError):
            trap.accept()
        allowed = chat(server.url, asking(QUESTION, (tmp_path / "cells.png").as_uri()))
        assert allowed.json()["choices"][0]["message"]["content"] == "2675"


def test_without_a_media_path_no_file_is_read() -> None:
    with served() as server:
        assert chat(server.url, asking(QUESTION, CELLS.as_uri())).status == 400


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", "localhost", "", "[::2]:{port}"]
)
def test_a_host_that_is_not_the_servers_own_is_refused(host: str, url: str) -> None:
    port = urlsplit(url).port
    assert get(url, "/health", host=host.format(port=port)).status == 403
    assert get(url, "/health", host=f"localhost:{port}").status == 200


def test_pages_of_other_origins_are_refused_unless_they_were_allowed(url: str) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert chat(url, asking("?", max_tokens=1), origin=origin).status == 403
    own = chat(url, asking("?", max_tokens=1), origin=url)
    assert own.status == 200
    assert not [name for name in own.headers if name.startswith("access-control")]


def test_a_key_that_is_wrong_is_refused_before_the_body_and_an_allowed_page_may_ask() -> None:
    page = "https://chat.example"
    with served(api_key="right", allow_origins=(page,)) as server:
        body = asking("?", max_tokens=1)
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic right"},
            {"x_api_key": ""},
        ):
            reply = chat(server.url, body, **headers)
            assert (reply.status, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        with connect(server.url) as connection:  # no body has come
            connection.sendall(head("POST", PATH, urlsplit(server.url).netloc, content_length="100"))
            assert read_reply(connection).status == 401
        assert get(server.url, "/metrics").status == 401
        assert chat(server.url, body, x_api_key="right").status == 200
        allowed = chat(server.url, body, authorization="Bearer right", origin=page)
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, page)
        with connect(server.url) as connection:
            asked = {"origin": page, "access_control_request_method": "POST"}
            connection.sendall(head("OPTIONS", PATH, urlsplit(server.url).netloc, **asked))
            assert read_reply(connection).headers["access-control-allow-origin"] == page


def test_other_computers_are_let_in_with_a_key_or_on_purpose_alone() -> None:
    for host in ("0.0.0.0", "192.168.1.2", "::", "a.example"):
        with pytest.raises(InvalidOptionError, match="set api_key, or no_auth"):
            ServerOptions(host=host)
        assert ServerOptions(host=host, api_key="k").host == ServerOptions(host=host, no_auth=True).host
    for host in ("127.0.0.1", "127.8.8.8", "localhost", "::1"):
        assert ServerOptions(host=host).host == host


def test_a_request_that_takes_too_long_ends(computed: list[int]) -> None:
    with served(limits=Limits(seconds=0.5)) as server:
        assert chat(server.url, endless()).status == 504
        with connect(server.url) as connection:
            send(connection, server.url, PATH, endless(stream=True))
            assert b'"timeout_error"' in read_reply(connection).body
        until(lambda: still(computed))


def test_a_server_that_stops_lets_running_requests_end_within_a_grace_period(computed: list[int]) -> None:
    with served(grace=20) as server, connect(server.url) as connection:
        send(
            connection,
            server.url,
            PATH,
            asking("?", grammar="root ::= [a-z]{500}", max_tokens=500, stream=True),
        )
        until(lambda: len(computed) > 5)
        server.stop()
        assert b"[DONE]" in read_reply(connection).body
    with served(grace=1) as server, connect(server.url) as connection:
        send(connection, server.url, PATH, endless())
        until(lambda: len(computed) > 5)
        server.stop()
        reply = read_reply(connection)
        assert (reply.status, reply.json()["error"]["code"]) == (503, "stopping")


def test_a_bundle_that_cannot_be_loaded_ends_the_server_with_its_error(tmp_path: Path) -> None:
    server = Server(lambda: AyaVision.load(tmp_path / "nothing"), ServerOptions(port=0))
    with pytest.raises(BundleError, match="nothing"):
        server.run()


def test_a_model_sleeps_when_nobody_asks_and_wakes_for_the_next_request() -> None:
    with served(sleep_after=0.2) as server:
        until(lambda: get(server.url, "/health").json()["status"] == "asleep")
        assert get(server.url, "/v1/models").json()["data"][0]["id"] == "demo"
        assert get(server.url, "/health").json()["status"] == "asleep"
        assert (
            chat(server.url, asking(QUESTION, data_url(CELLS))).json()["choices"][0]["message"]["content"]
            == "2675"
        )


def test_nothing_of_a_request_is_logged(url: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("hush hush")

    caplog.set_level(logging.DEBUG)
    assert chat(url, asking("hush hush", data_url(HEART), max_tokens=2)).status == 200
    assert chat(url, asking("hush hush", "hush hush")).status == 400
    monkeypatch.setattr(AyaVision, "astream_messages", fail)
    failed = chat(url, asking("hush hush"))
    assert failed.status == 500
    assert "hush" not in failed.body.decode()
    assert "RuntimeError" in caplog.text
    assert "hush" not in caplog.text
    assert "base64" not in caplog.text


def test_an_error_in_the_middle_of_a_stream_reaches_the_client(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        body = {name: value for name, value in asking("?").items() if name == "messages"}
        stream = client.chat.completions.create(
            model="any", stream=True, **body, extra_body={"grammar": ENDLESS["grammar"]}, max_tokens=6000
        )
        next(iter(stream))
        threading.Timer(0.1, lambda: monkeypatch.setattr(endpoint, "_next", _fail)).start()
        with pytest.raises(APIError, match="the server failed"):
            list(stream)


async def _fail(_: object) -> None:
    raise RuntimeError


@pytest.mark.parametrize("path", SURFACES)
def test_json_of_any_kind_in_any_field_is_understood_or_refused(path: str) -> None:
    """No failure of the server is left over: what passes here is what `AyaVision.ask` takes."""
    values = [None, True, -1, 0, 1e300, "", "x", [], [None], [[]], {}, {"type": 3}, {"type": "json_schema"}]
    schema = document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    surface, understood = SURFACES[path](), 0
    all_fields = {"model": "m", "prompt": "?", "input": "?", **asking("?")}
    body = {name: all_fields[name] for name in schema["properties"] if name in all_fields}
    for name in schema["properties"]:
        for value in values:
            try:
                asked = surface.asked({**body, name: value}, ())
                answer_options(**asked.within(LIMITS).options)
                understood += 1
            except AyaEdgeError as error:
                assert refusal_of(error).status == 400, (name, value)
    assert understood > len(schema["properties"])
