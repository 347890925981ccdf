"""A user whom the system does not know, as in a container that is started with `--user 12345`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

import command_line
from ayaedge import NO_CACHE, AyaVision, CacheOptions
from ayaedge.bundle import demo_bundle

IMAGE = Path(__file__).parents[1] / "examples" / "pictures" / "six-cells.png"
QUESTION = "What number is at the bottom left?"
NOBODY = 12345
WARNING = "nothing is kept for later processes"
HOMES = [None, "/", "closed"]
"""HOME: not set; what container engines set for a user without an entry; one that only somebody else may enter."""

ASK = (
    "import logging, sys; logging.basicConfig(); from ayaedge import AyaVision\n"
    "with AyaVision.load(*sys.argv[3:]) as model:\n"
    "    chat = model.chat()\n"
    "    first = chat.ask(sys.argv[1], images=sys.argv[2])\n"
    "    chat.save('chat.ayachat')\n"
    "    print(first.text, first.usage.cached_tokens)\n"
)

CLEAR = """
from ayaedge.cli.main import main
print("CLEAR", file=sys.stderr, flush=True)
sys.argv = ["ayaedge", "cache", "clear"]
main()
"""
COMMANDS: dict[str | None, list[list[str]]] = {
    None: [
        ["plan", "--image", str(IMAGE)],
        ["doctor", "--json"],
        ["cache", "prune"],
        ["cache", "clear"],
        ["cache", "ls"],
        ["cache", "ls", "--json"],
        ["info", str(demo_bundle())],
        ["bench", "--synthetic", "8b"],
        ["ask", "--image", str(IMAGE), QUESTION],
    ],
    "closed": [
        ["plan", "--image", str(IMAGE)],
        ["doctor"],
        ["cache", "ls"],
        ["ask", "--image", str(IMAGE), QUESTION],
    ],
}
"""For each HOME; first those that shall warn of nothing, whatever came before."""
IN_TURN = """
import json, os, sys
print(json.dumps([{**vars(ayaedge(*given)), "left": os.listdir()} for given in json.loads(sys.argv[1])]))
"""
"""Commands one after the other in a process, which shows what each wrote and what then lay where it ran."""

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can start a process of another user"
)


@contextmanager
def empty_place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="ayaedge-nobody-"))
    os.chown(directory, NOBODY, NOBODY)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty working directory of that user."""
    with empty_place() as directory:
        yield directory


_PLAIN = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
_READS_ALL = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
"""Where the installation lies in a home directory that is closed to others: reads any file, writes no more of them."""


@pytest.fixture
def run(place: Path) -> Run:
    """Starts Python as that user, and gives what it wrote."""
    return starter(place)


def starter(place: Path) -> Run:
    if not shutil.which("setpriv"):
        pytest.skip("setpriv, which starts a process of another user, is not installed")
    for command in (_PLAIN, [*_PLAIN, *_READS_ALL]):
        start = partial(_start, command, place)
        if start(["-c", "import ayaedge"], None).returncode == 0:
            return start
    pytest.skip("another user may not read this installation")


def _start(
    command: Sequence[str], place: Path, arguments: Sequence[str], home: str | None, **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **more}
    if home is not None:
        environment["HOME"] = home
    return subprocess.run(
        [*command, sys.executable, *arguments], capture_output=True, text=True, check=False,
        env=environment, cwd=place,
    )  # fmt: skip


@pytest.fixture(params=HOMES)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    if request.param != "closed":
        return request.param
    (tmp_path / "closed").mkdir(mode=0o700)
    return str(tmp_path / "closed")


def test_a_program_gets_answers_and_one_warning(run: Run, home: str | None, place: Path) -> None:
    done = run(["-c", ASK, QUESTION, str(IMAGE)], home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0].isdecimal()
    assert [line for line in done.stderr.splitlines() if "kept" in line or "cache" in line.lower()] == [
        line for line in done.stderr.splitlines() if WARNING in line
    ]
    assert done.stderr.count(WARNING) == 1
    assert [path.name for path in place.iterdir()] == ["chat.ayachat"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], dict[str, dict[str, Any]]]:
    """What each command did as that user, with a HOME of `COMMANDS`."""
    program = f"{Path(command_line.__file__).read_text('utf-8')}\n{IN_TURN}"

    @cache
    def of(home: str | None) -> dict[str, dict[str, Any]]:
        closed = str(tmp_path_factory.mktemp("closed")) if home else None  # of root, with mode 0700
        with empty_place() as place:
            done = starter(place)(["-c", program, json.dumps(COMMANDS[home])], closed)
        assert done.returncode == 0, done.stderr
        return dict(zip(map(" ".join, COMMANDS[home]), json.loads(done.stdout), strict=True))

    return of


Finished = Callable[[str | None], dict[str, dict[str, Any]]]


@pytest.mark.parametrize(
    ("home", "command"),
    [
        pytest.param(home, " ".join(command), id=f"{home} {command[0]} {command[-1][-7:]}")
        for home, commands in COMMANDS.items()
        for command in commands
        if command[0] != "bench"
    ],
)
def test_a_command_works_and_leaves_nothing_behind(
    finished: Finished, home: str | None, command: str
) -> None:
    done = finished(home)[command]
    assert done["returncode"] == 0, done["stderr"]
    assert "Traceback" not in done["stderr"]
    assert done["stderr"].count(WARNING) == command.startswith("ask")
    assert done["left"] == []


def test_what_is_missing_is_named(finished: Finished) -> None:
    done = finished(None)
    listed = json.loads(done["cache ls --json"]["stdout"])
    assert listed == {"directory": None, "states": [], "vision_graphs": []}
    facts = json.loads(done["doctor --json"]["stdout"])
    assert facts["cache"] == {"directory": None, "files": 0, "bytes": 0}
    assert "AYAEDGE_CACHE_DIR" in done["cache ls"]["stderr"]
    drawn = done["bench --synthetic 8b"]
    assert drawn["returncode"] != 0
    assert "Traceback" not in drawn["stderr"]
    assert "--keep" in drawn["stderr"]


def test_a_cache_that_can_only_be_read_is_read(run: Run, place: Path, wide_bundle: Path) -> None:
    """As in an image that this user has filled when it was made: no state is written, one warning says so."""
    bundle, kept = shutil.copytree(wide_bundle, place / "bundle"), place / "kept"
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    ask = partial(run, ["-c", ASK, QUESTION, str(IMAGE), str(bundle)], None, AYAEDGE_CACHE_DIR=str(kept))
    assert ask().stdout.split()[-1] == "0"
    for path in kept.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = sorted(path.name for path in kept.rglob("*"))
    done = ask()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0
    assert done.stderr.count(f"{kept / 'ayaedge'} cannot be written") == 1
    assert done.stderr.count("WARNING") == 1
    assert sorted(path.name for path in kept.rglob("*")) == before


def test_what_another_user_has_kept_is_neither_read_nor_touched(
    run: Run, place: Path, wide_bundle: Path
) -> None:
    """llama.cpp trusts states, and whoever filled the directory may mean harm."""
    bundle, kept = shutil.copytree(wide_bundle, place / "bundle"), place / "kept"
    with AyaVision.load(bundle, cache=CacheOptions(directory=kept)) as model:
        model.ask(QUESTION, images=IMAGE)
    for mode in (0o755, 0o777):
        for path in (kept, *kept.rglob("*"), bundle, *bundle.rglob("*")):
            path.chmod(mode if path.is_dir() else 0o666)
        before = sorted((path.name, path.stat().st_mtime_ns) for path in kept.rglob("*"))
        environment = {"AYAEDGE_CACHE_DIR": str(kept)}
        done = run(["-c", ASK + CLEAR, QUESTION, str(IMAGE), str(bundle)], None, **environment)
        assert done.returncode == 0, done.stderr
        asked, cleared = done.stderr.split("CLEAR")
        assert done.stdout.split()[1] == "0"
        assert asked.count(f"{kept / 'ayaedge'} is not used: it belongs to another user") == 1
        assert asked.count("WARNING") == 1
        assert "it belongs to another user" in cleared
        assert sorted((path.name, path.stat().st_mtime_ns) for path in kept.rglob("*")) == before


def test_no_cache_asks_for_no_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> Path:
        raise AssertionError("the cache's directory was asked for")

    monkeypatch.setattr("ayaedge.cache.options.cache_directory", asked)
    with AyaVision.load(cache=NO_CACHE) as model:
        model.ask(QUESTION, images=IMAGE, max_tokens=2)
        model.chat().ask("Hi", max_tokens=1)
