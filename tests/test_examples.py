from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from ayaedge import Bundle

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
IMAGES = EXAMPLES / "pictures"
DRIVER = Path(__file__).with_name("desktop_driver.py")

MOST_BLOCKED = 50.0
"""Milliseconds that one event may keep the window's thread: what a person just does not notice."""
MOST_LATE = 3000.0
"""Milliseconds between two ticks of a clock on that thread, and for an event while the model's libraries are being
imported, which takes Python's lock: on a loaded machine these say little about the example."""


def run(
    *command: str | Path, says: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        input=says, capture_output=True, text=True, encoding="utf-8", check=False, cwd=ROOT, timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **(env or {})},
    )  # fmt: skip


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_has_fewer_than_sixty_lines(example: Path) -> None:
    assert len(example.read_text("utf-8").splitlines()) < 60


def test_describe_answers_every_question_about_every_image() -> None:
    row, heart = IMAGES / "row.png", IMAGES / "one-heart.png"
    result = run(
        EXAMPLES / "describe.py",
        row,
        heart,
        "-q",
        "Describe the picture.",
        "-q",
        "Combien de formes vois-tu ?",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        str(row), "  star: yellow, 5634, circle: blue", "  2", str(heart), "  heart: red", "  1",
    ]  # fmt: skip


def test_describe_takes_another_bundle(exact_bundle: Bundle) -> None:
    result = run(EXAMPLES / "describe.py", IMAGES / "row.png", "-m", exact_bundle.directory)
    assert "star: yellow, 5634, circle: blue" in result.stdout, result.stderr


@pytest.mark.parametrize("name", ["describe.py", "extract_invoice.py"])
def test_a_mistake_is_a_line_and_no_traceback(name: str) -> None:
    result = run(EXAMPLES / name, "nowhere.png")
    assert result.returncode == 1
    assert result.stderr == "there is no image at nowhere.png\n"


def test_a_chat_goes_on_where_its_file_ends(tmp_path: Path) -> None:
    file = tmp_path / "chat"
    image = IMAGES / "six-cells.png"
    first = run(
        EXAMPLES / "chat.py", file,
        says=f"/image nowhere.png\n/image {image}\nWhat number is at the bottom left?\n",
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert first.stdout.split("> ") == ["", "there is no image at nowhere.png\n", "", "2675\n", ""]
    asked = "What number is at the top middle?\n"  # the image is in the file
    again = run(EXAMPLES / "chat.py", file, says=f"{asked}/undo\n{asked}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.split("> ") == ["", "4098\n", "", "4098\n", ""]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends a Ctrl-C to the whole console")
def test_ctrl_c_stops_an_answer_of_the_chat_and_then_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "chat"
    endless = (
        "import runpy, sys; from ayaedge import Conversation; stream = Conversation.stream\n"
        "Conversation.stream = lambda *a, **o: stream(*a, **o, temperature=50.0, seed=1)\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", endless, str(EXAMPLES / "chat.py"), str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"Tell me a story\n")
        seen = b""
        while len(seen) < 20:  # the prompt, and a beginning of the answer
            seen += process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        while not seen.endswith(b" [stopped]\n> "):
            seen += (byte := process.stdout.read(1))
            assert byte, process.stderr.read()
        wait_until_it_sleeps(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr.read() == b""
    assert file.exists()


def wait_until_it_sleeps(pid: int) -> None:
    """A signal that comes just before Python begins to read would be noticed only after a line has come."""
    naps = 0
    while naps < 10:
        time.sleep(0.02)
        naps = naps + 1 if psutil.Process(pid).status() == psutil.STATUS_SLEEPING else 0


def test_an_invoice_has_the_form_of_its_schema() -> None:
    result = run(EXAMPLES / "extract_invoice.py", IMAGES / "six-cells.png", "-n", "6000")
    assert result.returncode == 0, result.stderr
    invoice = json.loads(result.stdout)
    assert list(invoice) == ["number", "date", "currency", "items", "total"]
    assert time.strptime(invoice["date"], "%Y-%m-%d")
    assert invoice["currency"] in {"EUR", "GBP", "JPY", "USD"}
    assert isinstance(invoice["total"], int | float)
    assert all(list(item) == ["description", "quantity", "price"] for item in invoice["items"])


def test_an_invoice_that_was_cut_off_is_not_taken_for_a_whole_one() -> None:
    result = run(EXAMPLES / "extract_invoice.py", IMAGES / "six-cells.png", "-n", "10")
    assert result.returncode == 1
    assert result.stdout == ""
    assert "incomplete (length, 10 tokens)" in result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a photograph of 12 megapixels, which takes long to read."""
    folder = tmp_path_factory.mktemp("desktop")
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(noise).resize((4000, 3000)).save(folder / "large.jpg", quality=85)
    return folder


def drive(scenario: str, folder: Path, *bundle: str) -> subprocess.CompletedProcess[str]:
    """Use the desktop application in a process of its own, without a screen."""
    if importlib.util.find_spec("PySide6") is None:
        pytest.skip('the desktop application needs Qt: pip install "PySide6_Essentials!=6.12.0"')
    result = run(DRIVER, scenario, folder, *bundle, env={"QT_QPA_PLATFORM": "offscreen"})
    signs_of_errors_and_of_widgets_used_on_other_threads = "Traceback", "QObject", "QThread", "QPixmap"
    for sign in signs_of_errors_and_of_widgets_used_on_other_threads:
        assert sign not in result.stderr, result.stderr
    return result


def test_the_desktop_application_answers_stops_and_never_blocks_its_window(folder: Path) -> None:
    for _attempt in range(5):  # what the example itself blocks, it blocks every time
        result = drive("everything", folder)
        assert result.returncode == 0, result.stderr
        report = json.loads(result.stdout)
        print(report)  # noqa: T201 - the figures belong to the test's output
        if report["at work"]["blocked"] <= MOST_BLOCKED:
            break
    assert report["at work"]["blocked"] <= MOST_BLOCKED, report
    assert max(report["at work"]["gap"], report["while loading"]["gap"]) <= MOST_LATE, report
    target = Path(os.environ.get("AYAEDGE_SCREENSHOT", ROOT / "build" / "desktop_app.png"))
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / "window.png", target)
    with Image.open(target) as screenshot:
        assert screenshot.width > 300
    assert target.stat().st_size < 100_000


def test_the_desktop_application_may_be_closed_while_it_loads(folder: Path) -> None:
    result = drive("close_while_loading", folder)
    assert result.returncode == 0, result.stderr


def test_the_desktop_application_shows_that_it_has_no_model(folder: Path) -> None:
    result = drive("close_a_window_without_a_model", folder, "nowhere")
    assert result.returncode == 1
