from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import Finished, ayaedge

IMAGES = Path(__file__).parents[3] / "examples" / "pictures"
SIX = IMAGES / "six-cells.png"
NUMBER = "What number is at the bottom left?"
COMMAND = [sys.executable, "-m", "ayaedge", "chat"]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def chat(lines: str | bytes, *arguments: str | Path) -> Finished:
    """What a chat says to lines that come through a pipe."""
    result = ayaedge("chat", *arguments, typed=lines.encode() if isinstance(lines, str) else lines)
    assert "Traceback" not in result.stderr
    return result


def process(lines: str, *arguments: str | Path, env: dict[str, str] | None = None) -> Finished:
    """The same in a process of its own."""
    result = subprocess.run(
        [*COMMAND, *map(str, arguments)], input=lines.encode(), capture_output=True, check=False,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    return Finished(result.returncode, result.stdout.decode(), result.stderr.decode(errors="replace"))


def test_lines_of_a_pipe_are_questions_and_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(IMAGES)
    result = chat("/image six-cells.png\nWhat number is at\\\nthe bottom left?\n\n/bye\nnever read\n")
    assert (result.returncode, result.stdout) == (0, "2675\n"), result.stderr
    assert "attached" in result.stderr
    assert ">" not in result.stderr
    assert "demonstration" not in result.stderr


def test_an_image_may_be_the_url_of_a_file_or_the_file_itself() -> None:
    data = "data:image/png;base64," + base64.b64encode(SIX.read_bytes()).decode()
    for image in (SIX.as_uri(), SIX.as_uri().replace("file:///", "FILE://localhost/"), data):
        result = chat(f"{NUMBER}\n", "--image", image)
        assert (result.returncode, result.stdout) == (0, "2675\n"), result.stderr
    result = chat(f"/image {SIX.as_uri()}\n{NUMBER}\n")
    assert (result.returncode, result.stdout) == (0, "2675\n"), result.stderr


def test_the_last_line_needs_no_end_and_windows_writes_others() -> None:
    result = chat(f"\ufeff/image '{SIX}'\r\n{NUMBER}\r\nWhat shape is at the top right?")
    assert (result.returncode, result.stdout) == (0, "2675\nstar\n"), result.stderr


def test_a_mistake_is_told_at_once_and_by_the_exit_code_at_the_end() -> None:
    result = chat(f"/image none.png\n/wrong\n{NUMBER}\n", "--image", SIX)
    assert (result.returncode, result.stdout) == (1, "2675\n")
    assert result.stderr.count("error:") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--image", "none.png"], "no image at none.png"),
        (["--temperature", "-1"], "temperature must be 0 or more"),
        (
            ["--tiles", "native", "--budget", "3"],
            'budget needs tiles="auto" (on the command line: --tiles auto)',
        ),
        (["-m", "nowhere"], "no bundle at nowhere"),
        (["--open", "none.ayachat"], "none.ayachat"),
    ],
)
def test_a_mistake_of_the_command_ends_it_before_the_first_line(arguments: list[str], says: str) -> None:
    result = chat("Hi\n", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert says in result.stderr


def test_questions_come_in_all_languages_whatever_the_locale() -> None:
    examples = json.loads((IMAGES / "pictures.json").read_text("utf-8"))
    lines, answers = "", ""
    for example in examples:
        if example["picture"] == SIX.name:
            lines += f"/clear\n/image {SIX}\n{example['question']}\n"
            answers += example["answer"] + "\n"
    result = process(lines, env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (result.returncode, result.stdout) == (0, answers), result.stderr
    assert not answers.isascii()


def test_a_line_that_is_no_unicode_is_an_error_of_that_line_alone() -> None:
    result = chat(b"\xff\xfd?\n/image \xff.png\n" + NUMBER.encode() + b"\n", "--image", SIX)
    assert (result.returncode, result.stdout) == (1, "2675\n")
    assert result.stderr.count("error:") == 2


def test_a_chat_goes_on_in_another_process(tmp_path: Path) -> None:
    name = tmp_path / "رحلة.ayachat"
    assert chat(f"{NUMBER}\n/save {name}\n", "--image", SIX, "-s", "Be brief.").returncode == 0
    result = process("What shape is at the top right?\n/system\n", "--open", name)
    assert (result.returncode, result.stdout) == (0, "star\n"), result.stderr
    assert f"last: {NUMBER} → 2675" in result.stderr
    assert "instruction: Be brief." in result.stderr
    assert "instruction: No." in chat("/system\n", "--open", name, "-s", "No.").stderr


def test_without_lines_there_is_nothing_to_do() -> None:
    result = chat("")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_answers_that_cannot_be_written_are_an_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("the system has no device that is always full")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(COMMAND, input=b"Hi\nHi\n", stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 1
    assert result.stderr.count(b"error:") == 1
    assert b"Traceback" not in result.stderr


def test_a_reader_that_leaves_early_is_no_accident(endless: list[str]) -> None:
    with subprocess.Popen(
        [*COMMAND, *endless], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Hi\nHi\n")
        process.stdin.close()
        process.stdout.read(1)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no signal that stands for Ctrl-C in one process")
def test_an_interrupt_ends_a_chat_that_nobody_types(endless: list[str]) -> None:
    with subprocess.Popen(
        [*COMMAND, *endless], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"Hi\nHi\n")
        process.stdin.flush()
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert b"Traceback" not in process.stderr.read()
    assert process.returncode == 130
