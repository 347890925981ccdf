"""`ayaedge batch --ray` without an address: a cluster of this machine alone, which nobody else sees or joins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

import system_calls
from served import CELLS, QUESTION, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra `ray`)"),
    pytest.mark.skipif(os.name == "nt", reason="processes are looked at as Linux and macOS have them"),
]
ASKED = ["-p", QUESTION, "-n", "12", "--max-tiles", "1", "-t", "1"]


@pytest.mark.skipif(
    bool(system_calls.missing_tools()), reason=f"nothing can be traced here: {system_calls.missing_tools()}"
)
def test_it_speaks_to_loopback_alone_and_leaves_nothing_but_its_rows(tmp_path: Path) -> None:
    for name in ("home", "tmp", "target"):
        (tmp_path / name).mkdir()
    before = set(Path("/tmp").glob("ayaedge-ray-*"))
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C.UTF-8", "AYAEDGE_ACCELERATION": "off",
    }  # fmt: skip
    rows = tmp_path / "target" / "rows.jsonl"
    command = [sys.executable, "-m", "ayaedge", "batch", str(CELLS), "--ray", "-o", str(rows), "-p", QUESTION]
    seen = system_calls.watch(command, environment, directory=tmp_path / "target", loopback=True)
    assert seen.exit_code == 0, seen.errors
    assert json.loads(rows.read_text("utf-8"))["answer"] == "2675"
    assert seen.addresses() <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    allowed = [tmp_path / "target", tmp_path / "tmp", tmp_path / "home" / ".cache", Path("/dev")]
    outside = [path for path in seen.outside(allowed) if path.name != "oom_score_adj"]
    (private,) = {Path(*path.parts[:3]) for path in outside}
    assert private.parent == Path("/tmp")
    assert private.name.startswith("ayaedge-ray-")
    assert set(Path("/tmp").glob("ayaedge-ray-*")) == before


def processes_of(marker: str) -> list[psutil.Process]:
    """Processes of anybody that have this in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AYAEDGE_TEST_MARKER") == marker:
                found.append(process)
        except psutil.Error:
            continue
    return found


def name_of(process: psutil.Process) -> str:
    """Ray's agents of a node end half a minute after it."""
    try:
        return " ".join(process.cmdline()).lower()
    except psutil.Error:
        return ""


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses on which processes listen."""
    found = set()
    for process in processes:
        try:
            connections = process.net_connections("inet")
        except psutil.Error:
            continue
        found |= {str(one.laddr.ip) for one in connections if one.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.parametrize(
    ("ending", "code"),
    [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
    ids=["end", "kill"],
)
def test_a_batch_that_is_ended_takes_its_cluster_along_and_goes_on(
    ending: signal.Signals, code: int, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(400):
        Image.new("RGB", (20, 20), (number % 256, 90, number // 256)).save(
            tmp_path / "images" / f"{number}.png"
        )
    before = set(Path("/tmp").glob("ayaedge-ray-*"))
    journal, calm = tmp_path / "killed.jsonl", tmp_path / "calm.jsonl"
    command = [sys.executable, "-m", "ayaedge", "batch", str(tmp_path / "images"), *ASKED]
    environment = {**os.environ, "AYAEDGE_TEST_MARKER": str(tmp_path)}
    running = subprocess.Popen(
        [*command, "--ray", "-o", str(journal)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 5)
    assert listening(processes_of(str(tmp_path))) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    running.send_signal(ending)
    assert running.wait() == code
    until(lambda: not [one for one in processes_of(str(tmp_path)) if "agent" not in name_of(one)])
    lines = journal.read_bytes().count(b"\n")
    assert lines < 400, "it was not killed in the middle"
    for more in (["--ray", "-o", str(journal)], ["-o", str(calm)]):
        subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert answers(journal) == answers(calm)
    assert set(Path("/tmp").glob("ayaedge-ray-*")) <= before


def answers(journal: Path) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    return sorted((row["path"], row["answer"], row["fingerprint"]) for row in rows)
