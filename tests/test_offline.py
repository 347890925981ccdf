"""Nothing leaves the machine: every command without a network, under a tracer of system calls, with an empty home."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import seed_data
import system_calls
from system_calls import Seen, describe, watch

ROOT = Path(__file__).parents[1]
IMAGE = str(ROOT / "examples" / "pictures" / "six-cells.png")
QUESTION = "What number is at the bottom left?"
PROGRAM = """
import sys
from ayaedge import AyaVision
with AyaVision.load() as model:
    chat = model.chat()
    print(chat.ask(sys.argv[2], images=[sys.argv[1]]))
    chat.save(sys.argv[3])
"""
SERVED = """
import base64, json, re, signal, subprocess, sys, urllib.request
command = [sys.executable, "-m", "ayaedge", "serve", "--port", "0", "-t", "1"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
    url = re.search(r"http://\\S+(?=/v1)", server.stderr.readline())[0]
    image = "data:image/png;base64," + base64.b64encode(open(sys.argv[1], "rb").read()).decode()
    parts = [{"type": "image_url", "image_url": image}, {"type": "text", "text": sys.argv[2]}]
    body = json.dumps({"messages": [{"role": "user", "content": parts}]}).encode()
    with urllib.request.urlopen(f"{url}/v1/chat/completions", body) as answered:
        print(json.load(answered)["choices"][0]["message"]["content"])
    server.send_signal(signal.SIGTERM)
"""
AGENT = """
import json, subprocess, sys
command = [sys.executable, "-m", "ayaedge", "mcp", "-t", "1", "TARGET"]
client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}}
asked = {"name": "ask_about_image", "arguments": {"image": "cells.png", "question": sys.argv[1]}}
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
    for number, (method, given) in enumerate((("initialize", client), ("tools/call", asked))):
        told = {"jsonrpc": "2.0", "id": number, "method": method, "params": given}
        print(json.dumps(told), file=server.stdin, flush=True)
        answer = json.loads(server.stdout.readline())
    print(answer["result"]["content"][0]["text"])
    server.stdin.close()
"""
COMMANDS: dict[str, list[str]] = {
    "ask": ["ask", "--image", IMAGE, QUESTION],
    "chat": ["chat", "--image", IMAGE],
    "batch": ["batch", IMAGE, "-p", QUESTION, "-o", "TARGET/rows.jsonl"],
    "plan": ["plan", "--image", IMAGE],
    "plan --export": ["plan", "--export", "CHECKPOINT"],
    "tune": ["tune", "-m", "DEMO"],
    "bench": ["bench", "-m", "DEMO", "-n", "4", "--rounds", "1"],
    "benchmark": [
        "benchmark",
        "aya-vision-bench",
        "--data",
        "TARGET/data",
        "-n",
        "8",
        "-o",
        "TARGET/out.json",
    ],
    "doctor": ["doctor"],
    "info": ["info", "DEMO"],
    "cache": ["cache", "ls"],
    "verify": ["verify", "DEMO"],
    "verify --against": ["verify", "DEMO", "--against", "CHECKPOINT"],
    "eval": ["eval", "DEMO", "--against", "CHECKPOINT", "--text", "TARGET/text.jsonl"],
    "calibrate": ["calibrate", "CHECKPOINT", "-o", "TARGET/matrix.gguf", "--max-tokens", "1500"],
    "export": ["export", "CHECKPOINT", "-o", "TARGET/bundle"],
    "export --trace": ["export", "CHECKPOINT", "-o", "TARGET/traced", "--trace", "--vision", "fp32"],
}
ANSWERS = {"ask": "2675", "chat": "2675"}

pytestmark = pytest.mark.skipif(
    bool(system_calls.missing_tools()), reason=f"nothing can be traced here: {system_calls.missing_tools()}"
)


@pytest.fixture
def run(tmp_path: Path, tiny: Path) -> Callable[..., Seen]:
    """Runs a command of ayaedge, or python, in directories that are all empty."""
    for name in ("home", "tmp", "target"):
        (tmp_path / name).mkdir()
    target = tmp_path / "target"
    places = {"CHECKPOINT": str(tiny), "TARGET": str(target), "DEMO": str(target / "demo")}
    shutil.copytree(ROOT / "runtime" / "ayaedge" / "demo", target / "demo")  # `verify` writes figures into it
    seed_data.write_language(target, "deu_Latn", list(seed_data.draw_rows("de", 1))[:1])
    shutil.move(target / "AyaVisionBench", target / "data")
    (target / "text.jsonl").write_text('{"language": "en", "text": "The circle is red."}\n', "utf-8")

    def start(arguments: list[str], *, python: bool = False, given: str = "", loopback: bool = False) -> Seen:
        for name, place in places.items():
            arguments = [argument.replace(name, place) for argument in arguments]
        program = [sys.executable] if python else [sys.executable, "-m", "ayaedge"]
        # as little as possible of our own environment: no switch of the tests may stand in for one of ours
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8",
        }  # fmt: skip
        return watch([*program, *arguments], environment, given, tmp_path / "target", loopback=loopback)

    return start


def outside(seen: Seen, tmp_path: Path) -> list[Path]:
    caches = tmp_path / "home" / ".cache"
    allowed = [tmp_path / "target", tmp_path / "tmp", caches / "ayaedge", Path("/dev")]
    return [path for path in seen.outside(allowed) if path != caches]  # made for the directory in it


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_opens_no_socket_and_writes_only_where_it_may(
    name: str, run: Callable[..., Seen], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seen = run(COMMANDS[name], given=f"{QUESTION}\n")
    record_property("seen", f"ayaedge {name}: {describe(seen).replace(str(tmp_path), '')}")
    assert seen.exit_code == 0, seen.errors
    assert ANSWERS.get(name, "") in seen.output
    assert seen.sockets == ()
    assert outside(seen, tmp_path) == []


def test_a_program_opens_no_socket_and_writes_only_where_it_may(
    run: Callable[..., Seen], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seen = run(["-c", PROGRAM, IMAGE, QUESTION, "TARGET/cells.ayachat"], python=True)
    record_property("seen", f"a program: {describe(seen).replace(str(tmp_path), '')}")
    assert seen.output == "2675\n", seen.errors
    assert seen.sockets == ()
    assert outside(seen, tmp_path) == []
    assert tmp_path / "target" / "cells.ayachat" in [path.with_suffix(".ayachat") for path in seen.written]


def test_a_server_speaks_to_loopback_alone_and_writes_only_where_it_may(
    run: Callable[..., Seen], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seen = run(["-c", SERVED, IMAGE, QUESTION], python=True, loopback=True)
    record_property("seen", f"ayaedge serve and a client: {describe(seen).replace(str(tmp_path), '')}")
    assert seen.output == "2675\n", seen.errors
    assert any(call.startswith("listen(") or "SOCK_STREAM" in call for call in seen.sockets)
    assert seen.addresses() == {"127.0.0.1"}
    assert not [call for call in seen.sockets if "SOCK_DGRAM" in call]
    assert outside(seen, tmp_path) == []


def test_an_agents_server_opens_no_socket_and_writes_only_where_it_may(
    run: Callable[..., Seen], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    (tmp_path / "cells.png").write_bytes(Path(IMAGE).read_bytes())
    seen = run(["-c", AGENT.replace("TARGET", str(tmp_path)), QUESTION], python=True)
    record_property("seen", f"ayaedge mcp: {describe(seen).replace(str(tmp_path), '')}")
    assert seen.output == "2675\n", seen.errors
    assert seen.sockets == ()
    assert outside(seen, tmp_path) == []


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket(socket.AF_INET).connect_ex(('127.0.0.1', 9))",
        "import socket; socket.socket(socket.AF_INET6)",
        "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); socket.socket().connect_ex(('127.0.0.1', 9))",
        "import socket; s = socket.socket(); s.bind(('0.0.0.0', 0))",
        "import socket\ntry: socket.getaddrinfo('example.invalid', 80)\nexcept OSError: pass",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'])",
        "import threading, socket; t = threading.Thread(target=socket.socket); t.start(); t.join()",
    ],
)
def test_the_tracer_sees_every_way_to_a_network(program: str, run: Callable[..., Seen]) -> None:
    seen = run(["-c", program], python=True)
    assert seen.exit_code == 0, seen.errors
    assert seen.sockets != ()


@pytest.mark.parametrize(
    "program",
    [
        "import pathlib; pathlib.Path.home().joinpath('x').write_text('')",
        "import pathlib; pathlib.Path.home().joinpath('ü').mkdir()",
        "import os; os.chdir(os.path.expanduser('~')); open('x', 'a')",
        "import os; os.symlink('/', os.path.expanduser('~/x'))",
        "import os; f = os.open(os.path.expanduser('~'), os.O_RDONLY); os.open('x', os.O_CREAT, dir_fd=f)",
    ],
)
def test_the_tracer_sees_every_way_of_writing(program: str, run: Callable[..., Seen], tmp_path: Path) -> None:
    seen = run(["-c", program], python=True)
    assert seen.exit_code == 0, seen.errors
    (path,) = outside(seen, tmp_path)
    assert path.parent == tmp_path / "home"
