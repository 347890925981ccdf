"""The command that serves a bundle, as a process of its own and in what it refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from command_line import ayaedge
from served import CELLS, QUESTION, asking, chat, data_url, get, until


@pytest.mark.skipif(os.name == "nt", reason="Windows ends processes without asking them")
def test_a_server_says_where_it_is_answers_and_ends_when_it_is_told_to() -> None:
    command = [sys.executable, "-m", "ayaedge", "serve", "--port", "0", "-t", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            place = re.match(r"(http://127\.0\.0\.1:\d+)/v1 ", process.stderr.readline())
            assert place
            url = place[1]
            until(lambda: get(url, "/health").json()["status"] == "ready")
            answer = chat(url, asking(QUESTION, data_url(CELLS))).json()
            assert answer["choices"][0]["message"]["content"] == "2675"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
            said = process.stderr.read()
        finally:
            process.kill()
    assert "Neither requests nor images are logged" in said
    assert "number" not in said


def test_a_host_that_others_reach_needs_a_key_and_says_with_which_flag() -> None:
    refused = ayaedge("serve", "--host", "0.0.0.0")
    assert refused.returncode == 1
    assert "--api-key KEY, --no-auth" in " ".join(refused.stderr.split())


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = ayaedge("serve", "--port", str(taken.getsockname()[1]))
    assert refused.returncode == 1
    assert "error:" in refused.stderr


def test_without_the_extra_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "ayaedge.server.serving", raising=False)
    refused = ayaedge("serve", "--port", "0")
    assert refused.returncode == 1
    assert 'pip install "ayaedge[server]"' in refused.stderr
