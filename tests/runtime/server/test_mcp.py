"""The official client of MCP over real stdio against `ayaedge mcp` and the demonstration model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from ayaedge import InvalidOptionError
from ayaedge.server.agent_tools import Toolbox
from ayaedge.server.desk import Desk
from ayaedge.server.holder import Holder
from ayaedge.server.options import Limits
from served import CELLS, HEART, QUESTION, load_demo

if TYPE_CHECKING:  # loading it takes most of a second, in each process that only collects
    from mcp import Client
    from mcp_types import CallToolResult

SCHEMA = {"type": "object", "properties": {"shape": {"enum": ["star", "heart"]}}, "required": ["shape"]}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="recorded by a shell")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a file that is none, and links out of it."""
    folder = tmp_path_factory.mktemp("mcp") / "images"
    (folder / "inner").mkdir(parents=True)
    (folder / "cells.png").write_bytes(CELLS.read_bytes())
    (folder / "inner" / "heart.png").write_bytes(HEART.read_bytes())
    (folder / "notes.txt").write_text("hush hush")
    (folder.parent / "outside.png").write_bytes(CELLS.read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    (folder / "out").symlink_to(folder.parent, target_is_directory=True)
    return folder


@dataclass
class Session:
    """A client that has started a server."""

    client: Client
    portal: BlockingPortal
    end: Callable[[], None]
    records: Path
    """Named like this, with other endings: what the server wrote to stdout and to stderr, and its exit code."""

    def call(self, name: str, **arguments: Any) -> CallToolResult:
        return self.portal.call(self.client.call_tool, name, arguments)


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[Session]:
    from mcp import Client, StdioServerParameters, stdio_client
    from mcp.client import stdio

    records = folder.parent / "record"
    recorded = ["-c", '{ "$@"; echo $? > "$0.code"; } | tee "$0.out"', str(records)]
    command = [sys.executable, "-m", "ayaedge", "mcp", "-t", "1", "-v", str(folder)]
    server = StdioServerParameters(command="sh", args=[*recorded, *command], env=dict(os.environ))
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdio, "PROCESS_TERMINATION_TIMEOUT", 60.0)  # on a busy machine it ends by itself, too
        said = stack.enter_context(records.with_suffix(".err").open("w"))
        portal = stack.enter_context(start_blocking_portal())
        opened = Client(stdio_client(server, errlog=said))
        client = stack.enter_context(portal.wrap_async_context_manager(opened))
        yield Session(client, portal, stack.close, records)


def text_of(result: CallToolResult) -> str:
    from mcp_types import TextContent

    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def test_the_two_tools_say_what_they_take(session: Session, folder: Path) -> None:
    found = {tool.name: tool for tool in session.portal.call(session.client.list_tools).tools}
    assert set(found) == {"ask_about_image", "extract_from_image"}
    for tool in found.values():
        assert str(folder) in (tool.description or "")
        assert "image" in tool.input_schema["required"]


def test_a_question_about_an_image_is_answered(session: Session, folder: Path) -> None:
    for image in (
        "cells.png",
        str(folder / "cells.png"),
        (folder / "cells.png").as_uri(),
        "inner/../cells.png",
    ):
        found = session.call("ask_about_image", image=image, question=QUESTION)
        assert (found.is_error, text_of(found)) == (False, "2675")


def test_data_is_extracted_as_a_schema_says(session: Session) -> None:
    found = session.call("extract_from_image", image="inner/heart.png", schema=SCHEMA)
    assert not found.is_error
    assert found.structured_content == json.loads(text_of(found))
    assert set(found.structured_content) == {"shape"}


@pytest.mark.parametrize(
    ("image", "word"),
    [
        ("../outside.png", "not below"), ("{folder}/../outside.png", "not below"), ("link.png", "not below"),
        ("out/outside.png", "not below"), ("file://{folder}/%2e%2e/outside.png", "not below"),
        ("/etc/passwd", "not below"), ("//server/share/a.png", "not below"), ("file://server/a.png", "not below"),
        ("\\\\server\\share\\a.png", "not below"), ("~/a.png", "no image"),
        ("cells\0.png", "not below"), ("", "not below"),
        ("http://127.0.0.1:1/a.png", "URL"),
        ("data:image/png;base64,AAAA", "URL"), ("notes.txt", "image"), ("inner", "directory"), ("none.png", "no image"),
        (3, "image must be a string"), (None, "image must be a string"),
    ],
)  # fmt: skip
def test_what_is_no_image_below_the_folders_is_a_clear_error(
    image: Any, word: str, session: Session, folder: Path
) -> None:
    given = image.format(folder=folder) if isinstance(image, str) else image
    found = session.call("ask_about_image", image=given, question="?")
    assert found.is_error
    assert word in text_of(found)
    assert "hush" not in text_of(found)


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("ask_about_image", {"image": "cells.png"}, "question must be a string"),
        ("ask_about_image", {"image": "cells.png", "question": 3}, "question must be a string"),
        ("extract_from_image", {"image": "cells.png"}, "schema must be an object"),
        ("extract_from_image", {"image": "cells.png", "schema": {"type": "nothing"}}, "schema"),
        ("another", {}, "there is no tool 'another'"),
    ],
)
def test_wrong_arguments_are_a_clear_error(
    name: str, arguments: dict[str, Any], word: str, session: Session
) -> None:
    found = session.call(name, **arguments)
    assert found.is_error
    assert word in text_of(found)


def test_folders_that_are_none_are_refused(tmp_path: Path) -> None:
    desk = Desk(Limits())
    with pytest.raises(InvalidOptionError, match="none is not a folder"):
        Toolbox(Holder(load_demo, desk), desk, (tmp_path / "none",))


def test_stdout_is_the_protocols_alone_and_the_end_of_stdin_ends_it(session: Session) -> None:
    assert not session.call("ask_about_image", image="cells.png", question="hush hush").is_error
    session.end()
    lines = session.records.with_suffix(".out").read_text("utf-8").splitlines()
    assert {json.loads(line)["jsonrpc"] for line in lines} == {"2.0"}
    assert session.records.with_suffix(".code").read_text("utf-8") == "0\n"
    told = session.records.with_suffix(".err").read_text("utf-8", "replace")
    assert "llama" in told  # so much was said elsewhere
    assert "hush" not in told


def test_a_signal_ends_it_though_its_client_says_nothing(folder: Path) -> None:
    command = [sys.executable, "-m", "ayaedge", "mcp", "-t", "1", str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stderr
        assert "neither requests nor images are logged" in server.stderr.readline()
        time.sleep(0.5)
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 128 + signal.SIGINT
