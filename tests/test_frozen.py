"""Programs that PyInstaller has frozen with this package's hooks, on a computer without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageGrab

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
IMAGE = EXAMPLES / "pictures" / "six-cells.png"
QUESTION = "What number is at the bottom left?"
SOMEBODY = 12345
"""A user that the system does not know: without a home, and without rights in the program's folder."""
MOST_BYTES = {"describe": 300e6, "desktop_app": 450e6, "reader": 450e6}
"""Of folders, here, where everything is installed; with pandas they have 400 MB more, with PyTorch 700."""
DATA = {"reader": ["--add-data", f"{EXAMPLES / 'reader' / 'first_page.html'}:."]}
SLOWEST = 1.5
"""Times that the unfrozen program needs until its window is there."""
PATIENCE = 60.0
"""Seconds after which something that was to happen has not happened, on a busy machine."""
MISSING = [
    package
    for package, there in {
        "xvfb": shutil.which("Xvfb"), "xdotool": shutil.which("xdotool"), "xclip": shutil.which("xclip"),
        "libxcb-cursor0": find_library("xcb-cursor"),  # what Qt's plugin for X11 is linked with
    }.items()
    if not there
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can start a process of another user"
    ),
]  # fmt: skip
on_a_screen = pytest.mark.skipif(bool(MISSING), reason=f"a screen needs Debian's {', '.join(MISSING)}")

Freeze = Callable[..., Path]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it, its entry points included."""
    site = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, ROOT)
    return site


@pytest.fixture(scope="module")
def freeze(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Freeze:
    """Freezes a program, into a directory with spaces and letters that are not Latin."""
    work = tmp_path_factory.mktemp("frozen") / "Bücher und 本"
    for directory in [work, *work.parents]:
        if directory != Path("/tmp"):  # where everybody may enter already
            directory.mkdir(exist_ok=True)
            directory.chmod(directory.stat().st_mode | 0o755)

    def freeze(source: str, option: str) -> Path:
        program = Path(source).name
        target = work / f"{program}{option.replace('--', '-')}"
        found = target / program
        if found.exists():
            return found / program if found.is_dir() else found
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        run(
            sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", option, *DATA.get(program, []),
            "--distpath", target, "--workpath", target / "work", "--specpath", target / "work",
            EXAMPLES / f"{source}.py",
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        return found / program if found.is_dir() else found

    return freeze


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def somebody(*command: str | Path, **variables: str) -> list[str]:
    """A command of another user, with nothing in its environment and no Python in its path."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    user = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    return [*user, "env", "-i", "PATH=/nowhere", *settings, *map(str, command)]


def size(program: Path) -> int:
    folder = program.parent
    files = folder.rglob("*") if (folder / "_internal").is_dir() else [program]
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


def test_a_console_program_answers_with_nothing_installed_and_nothing_in_its_environment(
    freeze: Freeze,
) -> None:
    program = freeze("describe", "--onedir")
    assert size(program) < MOST_BYTES["describe"]
    done = subprocess.run(
        somebody(program, IMAGE, "-q", QUESTION), check=False, capture_output=True, text=True, cwd="/"
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, [str(IMAGE), "  2675"]), done.stderr


def test_a_bundle_next_to_the_program_is_found_by_its_name(freeze: Freeze) -> None:
    program = freeze("describe", "--onedir")
    shutil.copytree(ROOT / "runtime" / "ayaedge" / "demo", program.parent / "bundles" / "small")
    done = subprocess.run(
        somebody(program, IMAGE, "-q", QUESTION, "-m", "small"),
        check=False, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["  2675"]), done.stderr


class Person:
    """Sits at a screen of its own, and has its keys, its mouse and its clipboard."""

    def __init__(self, screen: str) -> None:
        self.screen = screen

    def do(self, *command: str | int) -> str:
        words = ["xdotool", *map(str, command)]
        variables = {**os.environ, "DISPLAY": self.screen}
        return subprocess.run(words, check=False, capture_output=True, text=True, env=variables).stdout

    def windows(self) -> list[str]:
        """All that can be seen; there is no window manager, so that the first one is the program's."""
        return self.do("search", "--onlyvisible", "--class", ".").split()

    def press(self, *keys: str) -> None:
        self.do("key", *keys)

    def write(self, text: str) -> None:
        self.do("type", "--delay", 20, text)

    def click(self, window: str, x: int, y: int) -> None:
        self.do("windowfocus", window, "mousemove", "--window", window, x, y, "click", 1)

    def choose_file(self, program: str, path: Path) -> None:
        """In the dialog that is open."""
        (dialog,) = set(self.windows()) - {program}
        self.do("windowfocus", dialog)
        self.write(str(path))
        self.press("Return")
        wait("the end of the dialog", lambda: len(self.windows()) == 1)
        self.do("windowfocus", program)

    def copied(self) -> str:
        command = ["xclip", "-display", self.screen, "-selection", "clipboard", "-o"]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE).stdout

    def look(self, name: str) -> Image.Image:
        """A screenshot, which is left in `build` for people."""
        seen = ImageGrab.grab(xdisplay=self.screen)
        (ROOT / "build").mkdir(exist_ok=True)
        seen.save(ROOT / "build" / f"{name}.png")
        return seen


@pytest.fixture
def person() -> Iterator[Person]:
    reading, writing = os.pipe()
    # any user's programs may come, and when the last one goes the screen does not begin anew under the next
    options = ["-screen", "0", "1024x768x24", "-nolisten", "tcp", "-ac", "-noreset"]
    with subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), *options], pass_fds=[writing], stderr=subprocess.DEVNULL
    ) as server:
        try:
            yield Person(f":{os.read(reading, 16).decode().strip()}")
        finally:
            server.terminate()
    os.close(reading)
    os.close(writing)


@contextmanager
def running(command: list[str], person: Person, **variables: str) -> Iterator[str]:
    """The program's window as soon as it is there."""
    with subprocess.Popen(command, env=variables or None, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait("a window", person.windows, process)
            yield person.windows()[0]
        finally:
            if process.poll() is None:
                root = psutil.Process(process.pid)
                # one file is a program that unpacks another one, and cleans up after it
                for program in root.children() or [root]:
                    program.terminate()


def wait(what: str, condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"no {what}: {process.communicate()[1]}")
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


@on_a_screen
@pytest.mark.parametrize("form", ["--onedir", "--onefile"])
def test_a_window_answers_on_a_screen_as_another_user_with_an_empty_environment(
    form: str, freeze: Freeze, person: Person
) -> None:
    program = freeze("desktop_app", form)
    print(f"desktop_app {form}: {size(program) / 1e6:.0f} MB")  # noqa: T201 - the figures belong to the output
    assert size(program) < MOST_BYTES["desktop_app"]
    with running(somebody(program, DISPLAY=person.screen), person) as window:

        def dialog() -> bool:
            person.click(window, 50, 46)  # "Open…"; the window takes clicks once the model is there
            time.sleep(0.2)
            return len(person.windows()) == 2

        wait("a dialog", dialog)
        person.choose_file(window, IMAGE)
        person.press("Tab")
        person.write(QUESTION)
        person.press("Return", "Tab", "Tab")  # to the answer

        def answer() -> str:
            person.press("ctrl+a", "ctrl+c")
            time.sleep(0.2)
            return person.copied()

        wait("the answer 2675", lambda: answer() == "2675")
        seen = person.look(f"frozen-desktop_app{form.replace('--', '-')}")
    assert len(seen.getcolors(1 << 20) or []) > 20, "the image is in the window"


@on_a_screen
def test_the_reader_answers_frozen_and_its_answer_is_copied(freeze: Freeze, person: Person) -> None:
    program = freeze("reader/reader", "--onedir")
    print(f"reader: {size(program) / 1e6:.0f} MB")  # noqa: T201 - the figures belong to the output
    assert size(program) < MOST_BYTES["reader"]
    with running(somebody(program, "", DISPLAY=person.screen), person) as window:  # "": the demonstration

        def dialog() -> bool:
            person.do("windowfocus", window, "key", "ctrl+o")  # there are no menus before the model
            time.sleep(0.2)
            return len(person.windows()) == 2

        wait("a dialog", dialog)
        person.choose_file(window, IMAGE)
        person.click(window, 800, 560)
        person.write(QUESTION)
        person.press("Return")

        def copied() -> str:
            person.press("ctrl+shift+c")
            time.sleep(0.2)
            return person.copied()

        wait("the answer 2675", lambda: copied() == "2675")
        person.look("frozen-reader")


@on_a_screen
def test_a_folder_starts_about_as_quickly_as_the_program_that_is_not_frozen(
    freeze: Freeze, person: Person
) -> None:
    commands = {
        "not frozen": [sys.executable, str(EXAMPLES / "desktop_app.py")],
        "folder": [str(freeze("desktop_app", "--onedir"))],
        "one file": [str(freeze("desktop_app", "--onefile"))],  # unpacks itself at each start; reported alone
    }
    without = "PYTHONDONTWRITEBYTECODE"  # with it every start of Python compiles our sources anew
    variables = {name: value for name, value in os.environ.items() if name != without}
    seconds: dict[str, list[float]] = {form: [] for form in commands}
    for _ in range(
        1 + 5
    ):  # in turns, so that a busy moment meets all; the first round fills the system's caches
        for form, command in commands.items():
            start = time.monotonic()
            with running(command, person, **{**variables, "DISPLAY": person.screen}):
                seconds[form].append(time.monotonic() - start)
            wait("an empty screen", lambda: not person.windows())
    best = {form: min(runs[1:]) for form, runs in seconds.items()}
    print(f"seconds until the window is there: {best}")  # noqa: T201 - the figures belong to the output
    assert best["folder"] <= SLOWEST * best["not frozen"]
