from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

if os.name == "nt":
    pytest.skip("Windows has no pseudo-terminals that Python can open", allow_module_level=True)

import termios

from pseudo_terminal import ALT_ENTER, CTRL_C, CTRL_D, ENTER, TAB, UP, Terminal

IMAGES = Path(__file__).parents[3] / "examples" / "pictures"
SIX = IMAGES / "six-cells.png"
NUMBER = "What number is at the bottom left?"
EDITOR = """
from ayaedge.cli.chat_input import open_lines
lines = open_lines()
line = ""
while line is not None:
    try:
        line = lines.read("> ")
        print(type(lines).__name__, ascii(line), flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def chat(*arguments: str | Path, **settings: object) -> Terminal:
    return Terminal("-m", "ayaedge", "chat", *arguments, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and other files with all sorts of names."""
    folder = tmp_path_factory.mktemp("files")
    for name in (
        "صورة من البحر.png",
        "one.png",
        "once.jpg",
        'it\'s "it".png',
        "notes.txt",
        ".hidden.png",
        "a.ayachat",
    ):
        (folder / name).write_bytes(SIX.read_bytes())
    (folder / "album two").mkdir()
    (folder / "album two" / "写真.png").write_bytes(SIX.read_bytes())
    return folder


@pytest.fixture
def editor(folder: Path) -> Iterator[Terminal]:
    """Shows what the lines are that are typed."""
    with Terminal("-c", EDITOR, cwd=folder) as terminal:
        terminal.wait_for_prompt()
        yield terminal


def read(editor: Terminal, keys: str, expected: str) -> None:
    editor.type(keys)
    editor.wait_for(f"TerminalLines {expected!a}")
    editor.wait_for_prompt()


def test_lines_are_edited_remembered_and_may_be_several(editor: Terminal) -> None:
    read(editor, "Hi\r", "Hi")
    read(editor, "two\\\rlines\r", "two\nlines")
    read(editor, f"three{ALT_ENTER}more{ALT_ENTER}lines\r", "three\nmore\nlines")
    read(editor, "\x1b[200~pasted\nما هذا؟\x1b[201~\r", "pasted\nما هذا؟")
    read(editor, "escaped\\\\\r", "escaped\\\\")
    read(editor, "海\x7f山 🌊\r", "山 🌊")
    editor.type(CTRL_D)
    editor.wait_for("TerminalLines None")
    assert editor.finish() == 0


def test_history_goes_back(editor: Terminal) -> None:
    read(editor, "first\r", "first")
    read(editor, "second\r", "second")
    editor.type(UP + UP)
    editor.wait_for_prompt("> first")
    read(editor, "!\r", "first!")


def test_an_interrupt_clears_what_was_typed_and_is_one_where_nothing_was(editor: Terminal) -> None:
    editor.type("some text")
    editor.wait_for_prompt("> some text")
    editor.type(CTRL_C)
    editor.wait_for("TerminalLines ''")
    editor.wait_for_prompt()
    assert "some text" not in editor.screen
    editor.type(CTRL_C)
    editor.wait_for("interrupted")
    editor.wait_for_prompt()
    editor.process.kill(signal.SIGINT)
    editor.wait_until(lambda screen: screen.count("interrupted") == 2, "a signal is the same")


def test_names_of_commands_and_files_are_completed(editor: Terminal) -> None:
    for typed, completed in [
        ("/im", "/image"),
        ("/image ص", "/image صورة\\ من\\ البحر.png"),
        ("/image album\\ t", "/image album\\ two/"),
        ("/image 'album two/", "/image 'album two/写真.png'"),
        ('/image "album', '/image "album two/'),
        ("/image 'it", "/image 'it'\\''s \"it\".png'"),
        ("/image one.png .hid", "/image one.png .hidden.png"),
        ("/save a.", "/save a.ayachat"),
        ("/open alb", "/open album\\ two/"),
        ("/tiles nat", "/tiles native"),
    ]:
        editor.type(typed + TAB)
        editor.wait_for_prompt(f"> {completed}")
        read(editor, ENTER, completed)


def test_of_several_names_one_is_chosen(editor: Terminal) -> None:
    editor.type(f"/image on{TAB}")
    editor.wait_for("once.jpg", "one.png")
    assert "notes.txt" not in editor.screen
    editor.type(TAB + TAB)
    editor.wait_for("> /image one.png")
    editor.type(ENTER)  # takes it
    editor.wait_until(lambda screen: "once.jpg" not in screen, "the menu closes")
    read(editor, ENTER, "/image one.png")


@pytest.mark.parametrize("term", ["dumb", "", "unknown"])
def test_a_terminal_that_cannot_draw_gets_plain_lines(term: str, folder: Path) -> None:
    with Terminal("-c", EDITOR, cwd=folder, env={"TERM": term}) as editor:
        editor.wait_for_prompt()
        editor.enter("two\\")
        editor.enter("línés")
        editor.wait_for("PlainLines 'two\\nl\\xedn\\xe9s'")
        editor.wait_for_prompt()
        editor.type(CTRL_C)
        editor.wait_for("interrupted")
        editor.type(CTRL_D)
        editor.wait_for("PlainLines None")
        assert editor.finish() == 0
        assert b"\x1b[" not in editor.raw


def test_answers_stream_about_images_and_what_was_said_before(folder: Path) -> None:
    with chat(cwd=folder) as terminal:
        terminal.wait_for("demonstration model", "/help")
        terminal.wait_for_prompt()
        terminal.type(f"/image ص{TAB}")
        terminal.wait_for_prompt("> /image صورة\\ من\\ البحر.png")
        terminal.type(ENTER)
        terminal.wait_for_prompt("[1 image] >")
        terminal.enter(NUMBER)
        terminal.wait_for_prompt()
        assert f"> {NUMBER}\n2675\n>" in terminal.screen
        terminal.enter("What shape is at the top right?")
        terminal.wait_for("\nstar\n>")
        terminal.enter("/stats")
        terminal.wait_for("prompt ", "a second", "vision")
        terminal.wait_for_prompt()
        terminal.enter("/tiles 4")
        terminal.wait_for("at most 4")
        terminal.wait_for_prompt()
        terminal.enter(f"'{folder}/one.png' ")  # a file that is dropped on the terminal
        terminal.wait_for_prompt("[1 image] >")
        terminal.enter("/bye")
        assert terminal.finish() == 0


def test_an_answer_is_stopped_and_the_chat_goes_on(folder: Path, endless: list[str]) -> None:
    file = folder / "stopped.ayachat"
    with chat(*endless) as terminal:
        terminal.wait_for_prompt()
        terminal.enter("Hi")
        terminal.wait_until(lambda screen: len(screen) > 1000, "a long answer")
        terminal.type(CTRL_C)
        terminal.wait_for("stopped")
        terminal.wait_for_prompt()
        terminal.enter("/stats")
        terminal.wait_for("a second")
        terminal.wait_for_prompt()
        terminal.enter(f"/save {file}")
        terminal.wait_for("saved")
        terminal.wait_for_prompt()
        terminal.enter("Again")
        terminal.wait_until(lambda screen: len(screen.partition("> Again")[2]) > 500, "another one")
        terminal.type(CTRL_C)
        terminal.wait_until(lambda screen: "stopped" in screen.partition("> Again")[2], "the second stop")
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        terminal.wait_for("once more leaves")
        terminal.wait_for_prompt()
        terminal.type(CTRL_C)
        assert terminal.finish() == 130
    # on a busy machine the stopped answer is longer than this model's context
    with chat("--open", file, "--image", folder / "one.png", "--overflow", "drop_oldest") as terminal:
        terminal.wait_for("1 question, 0 images")
        terminal.wait_for_prompt("[1 image] >")
        terminal.enter(NUMBER)
        terminal.wait_for(f"{NUMBER}\n2675\n")
        terminal.wait_for_prompt()
        terminal.type(CTRL_D)
        assert terminal.finish() == 0


def test_the_reading_of_images_is_stopped_and_they_are_kept(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)
    for number in range(8):
        Image.fromarray(noise.integers(0, 256, (768, 1024, 3), np.uint8)).save(tmp_path / f"{number}.png")
    with chat(cwd=tmp_path) as terminal:
        terminal.wait_for_prompt()
        terminal.enter(" ".join(f"{number}.png" for number in range(8)))
        terminal.wait_for_prompt("[8 images] >")
        terminal.enter("What is this?")
        terminal.wait_for("tiles")
        terminal.type(CTRL_C)
        terminal.wait_for("stopped, and the question forgotten")
        terminal.wait_for_prompt("[8 images] >")
        terminal.enter("/image clear")
        terminal.wait_for_prompt()
        terminal.enter(f"/image {SIX}")
        terminal.wait_for_prompt("[1 image] >")
        terminal.enter(NUMBER)
        terminal.wait_for(f"{NUMBER}\n2675\n")
        terminal.wait_for_prompt()
        terminal.enter("/exit")
        assert terminal.finish() == 0


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({"NO_COLOR": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, (24, 80)),
        ({"TERM": "dumb"}, (24, 80)),
        ({"TERM": "vt100", "LC_ALL": "POSIX"}, (3, 12)),
    ],
)
def test_odd_terminals_are_no_hindrance(
    variables: dict[str, str], size: tuple[int, int], folder: Path
) -> None:
    with chat("--image", SIX, env=variables, size=size) as terminal:
        terminal.wait_until(lambda screen: screen.endswith(">"), "the prompt")
        terminal.enter("Welche Zahl steht unten links?")
        terminal.wait_for("2675")
        terminal.wait_until(lambda screen: screen.endswith("\n>"), "the prompt")
        terminal.enter("/image صورة.png")
        terminal.wait_for("error:")
        terminal.wait_until(lambda screen: screen.endswith("\n>"), "the prompt")
        terminal.enter("/bye")
        assert terminal.finish() == 0
        assert "Traceback" not in terminal.screen


def test_the_answers_alone_go_to_a_redirected_stdout(tmp_path: Path) -> None:
    command = (
        f"import os, sys; os.dup2(os.open('{tmp_path}/answers', os.O_WRONLY | os.O_CREAT), 1); "
        "from ayaedge.cli.main import main; sys.argv[1:] = ['chat']; main()"
    )
    with Terminal("-c", command) as terminal:
        terminal.wait_for_prompt()
        terminal.enter(f"/image {SIX}")
        terminal.wait_for_prompt("[1 image] >")
        terminal.enter(NUMBER)
        terminal.wait_for_prompt()
        terminal.enter("/bye")
        assert terminal.finish() == 0
    assert (tmp_path / "answers").read_text("utf-8") == "2675\n"


def test_a_program_that_is_ended_leaves_the_terminal_as_it_was() -> None:
    with chat() as terminal:
        before = termios.tcgetattr(terminal.process.child_fd)
        terminal.wait_for_prompt()
        assert termios.tcgetattr(terminal.process.child_fd) != before
        terminal.process.kill(signal.SIGTERM)
        while terminal.read() and terminal.process.isalive():
            pass
        after = termios.tcgetattr(terminal.process.child_fd)
        assert after == before
        assert terminal.finish() == 128 + signal.SIGTERM
