"""Names of files, manifests, templates and libraries' messages are shown, and steer no terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from ayaedge.bundle import demo_bundle
from ayaedge.cli import console, doctor
from ayaedge.errors import printable
from command_line import ayaedge

CLIPBOARD = "\x1b]52;c;cm0=\x07"
"""What makes a terminal put a text into the clipboard."""
HOSTILE = f"{CLIPBOARD}\x9b2J\x7f\u202e\u2066\u2028\x85\r[bold red]x[link=a]"
SHOWN = r"\x1b]52;c;cm0=\x07\x9b2J\x7f\u202e\u2066\u2028\x85\r[bold red]x[link=a]"
DRAWN = SHOWN.replace(r"\x07", "").replace(r"\r", "")
"""What rich leaves of it: it drops some controls itself."""
STEERING = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0)), *map(chr, range(0x2028, 0x202F))} - {
    "\n",
    "\t",
}
STEERING |= set(map(chr, range(0x2066, 0x206A)))
READABLE = "صورة שלום नमस्ते 図\u3000表 é\u200f\u00a0"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="names of files cannot hold these there")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., tuple[str, str]]:
    """Runs a command in this process; gives what it wrote to stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "2000")
    monkeypatch.setattr(console, "_REPORT_WIDTH", 2000)  # no cell of a table is broken

    def call(*arguments: object, typed: str = "") -> tuple[str, str]:
        done = ayaedge(*map(str, arguments), typed=typed.encode())
        return done.stdout, done.stderr

    return call


def harmless(text: str) -> bool:
    return not STEERING & set(text)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The demonstration bundle with a hostile name, manifest and template."""
    copy = shutil.copytree(demo_bundle(), tmp_path / HOSTILE)
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    manifest["source"] |= {"name": HOSTILE, "license": HOSTILE}
    manifest["formats"]["adjustments"] = [HOSTILE]
    manifest["created_by"][HOSTILE] = HOSTILE
    manifest["parity"][HOSTILE] = 1.0
    manifest["chat_template"] = "{{ raise_exception(" + json.dumps(HOSTILE) + ") }}"
    (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return copy


COMMANDS: dict[str, list[object]] = {
    "a missing image": ["ask", "--image", HOSTILE, "x"],
    "an image that is none": ["ask", "--image", "{none}", "x"],
    "a directory as an image": ["chat", "--image", "{bundle}"],
    "a URL": ["ask", "--image", f"https://{HOSTILE}", "x"],
    "a data URL": ["ask", "--image", f"data:image/png,{HOSTILE}", "x"],
    "a missing bundle": ["ask", "-m", HOSTILE, "x"],
    "a template's error": ["ask", "-m", "{bundle}", "x"],
    "what a library says": ["ask", "-v", "-m", "{bundle}", "x"],
    "facts of a manifest": ["info", "{bundle}"],
    "a manifest as JSON": ["info", "{bundle}", "--json"],
    "a damaged manifest": ["info", "{damaged}"],
    "a plan": ["plan", "-m", "{bundle}", "--image", "{none}"],
    "a plan of a template": ["plan", "-m", "{bundle}"],
    "a plan of an export": ["plan", "--export", HOSTILE],
    "an export": ["export", HOSTILE],
    "an export of a damaged checkpoint": ["export", "{damaged}"],
    "a calibration": ["calibrate", HOSTILE, "-o", "x"],
    "a text for calibration": ["calibrate", "{bundle}", "-o", "x", "--text", HOSTILE],
    "an evaluation": ["eval", "{bundle}", "--against", HOSTILE],
    "a verification": ["verify", "{damaged}"],
    "a benchmark": ["bench", "-m", f"{HOSTILE}.gone"],
    "a tuning": ["tune", "-m", HOSTILE],
    "the cache": ["cache", "ls"],
    "the cache as JSON": ["cache", "ls", "--json"],
    "an emptied cache": ["cache", "clear"],
    "a saved chat": ["chat", "--open", HOSTILE],
    "a file of a schema": ["ask", "x", "--json-schema", HOSTILE],
    "a file of a grammar": ["ask", "x", "--grammar", HOSTILE],
    "an option's value": ["ask", "x", "--tiles", HOSTILE],
    "a number": ["ask", "x", "-n", HOSTILE],
    "an unknown option": ["ask", "x", f"--{HOSTILE}"],
    "an unknown command": [HOSTILE],
    "an unknown command of the cache": ["cache", HOSTILE],
    "one argument too many": ["info", "a", HOSTILE],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_passes_on_what_steers_a_terminal(
    name: str,
    run: Callable[..., tuple[str, str]],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path / f"cache{HOSTILE}"))
    monkeypatch.chdir(tmp_path)
    none, damaged = tmp_path / f"none{HOSTILE}", tmp_path / f"damaged{HOSTILE}"
    none.write_bytes(b"none")
    damaged.mkdir()
    for file in ("manifest.json", "config.json"):
        (damaged / file).write_text(json.dumps({"model_type": HOSTILE, HOSTILE: HOSTILE}), "utf-8")
    places = {"{none}": none, "{damaged}": damaged, "{bundle}": bundle}
    written, said = run(*(places.get(str(argument), argument) for argument in COMMANDS[name]))
    assert harmless(written), ascii(written)
    assert harmless(said), ascii(said)
    assert "Traceback" not in said
    found = json.loads(written) if "JSON" in name else None
    if found is None:
        assert SHOWN[:12] in written + said or name in ("an emptied cache", "a number"), said
    elif "source" in found:
        assert found["source"]["name"] == HOSTILE


def test_a_chat_shows_what_names_hold(
    run: Callable[..., tuple[str, str]], bundle: Path, tmp_path: Path
) -> None:
    image = tmp_path / f"{READABLE}{HOSTILE}.png"
    shutil.copy(Path(__file__).parents[3] / "examples" / "pictures" / "one-heart.png", image)
    name = str(image).replace("\r", "")
    lines = [
        f"/image '{name}'",
        f"/open {name}",
        f"/image {name}.gone",
        f"/{CLIPBOARD}",
        f"/system {HOSTILE[:-1]}",
    ]
    shutil.copy(image, name)
    written, said = run("chat", typed="\n".join([*lines, "/image", "/tiles \x1b[2J", ""]))
    assert harmless(written + said), ascii(said)
    assert READABLE in said
    assert said.count(SHOWN[:12]) >= 5


def test_what_is_logged_warned_and_counted_is_shown_without_steering(
    run: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def collect() -> None:
        logging.getLogger("ayaedge.x").warning("a %s", HOSTILE)
        warnings.warn(f"b {HOSTILE}", UserWarning, stacklevel=1)
        with console.count_progress(f"c {HOSTILE}") as advance:
            advance(1, 2, HOSTILE)
        with console.byte_progress(2) as advance_bytes:
            advance_bytes(1, HOSTILE)
        console.announce(f"d {HOSTILE}", HOSTILE)
        raise LookupError(f"e {HOSTILE}")

    console.show_messages(logging.WARNING)
    monkeypatch.setattr(doctor, "collect", collect)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        written, said = run("doctor")
    assert harmless(written + said), ascii(said)
    for mark in "abde":
        assert f"{mark} {DRAWN}" in said
    assert "LookupError" in said


def test_a_bar_on_a_terminal_has_no_escapes_but_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setenv("TERM", "xterm")
    shown = console._Screen(file=screen, force_terminal=True, soft_wrap=True, width=300)
    monkeypatch.setattr(console, "stderr", shown)
    with console.count_progress(HOSTILE) as advance:
        advance(1, 2, HOSTILE)
    assert SHOWN[:12] in screen.getvalue()
    assert not {"\x9b", "\x07", "\u202e", "\u2028"} & set(screen.getvalue())
    assert "\x1b]" not in screen.getvalue()


def test_text_of_every_script_stays_as_it_is() -> None:
    assert printable(READABLE) == READABLE
    assert printable(f"a\n\tb{HOSTILE}") == f"a\n\tb{SHOWN}"
    assert printable("\ud800") == r"\ud800"


def test_an_answer_on_a_terminal_may_turn_its_direction_but_not_that_of_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, shown in (
        (Screen(), "\u2067שלום\u2069 a\ufffdb"),
        (io.StringIO(), "\u2067שלום\u2069 a\u202eb"),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        console.write("\u2067שלום\u2069 a\u202eb")
        assert stream.getvalue() == shown
