"""What a program notices of the model inside it: nothing but answers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ayaedge import AyaVision, CacheOptions
from ayaedge.bundle import demo_bundle

SIX = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
QUESTION = "What number is at the bottom left?"


def run(code: str) -> subprocess.CompletedProcess[str]:
    """A program of its own; it fails the test unless it ends well within a minute."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )


def test_signals_streams_and_settings_stay_as_they_were() -> None:
    code = f"""
import locale, logging, os, signal, sys, threading, warnings
import numpy  # adds filters of warnings
numbers = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
def facts():
    return ([signal.getsignal(n) for n in numbers], sys.stdout, sys.stderr, sys.excepthook, os.getcwd(),
            locale.setlocale(locale.LC_ALL), logging.getLogger().handlers, logging.getLogger().level,
            threading.excepthook, warnings.filters[:], sys.getrecursionlimit(), os.umask(0o022))
before = facts()
from ayaedge import AyaVision
with AyaVision.load() as model:
    assert model.ask({QUESTION!r}, images=[{str(SIX)!r}]).text == "2675"
    try:
        model.ask("x", images=[b"none"])
    except ValueError:
        pass
assert [a == b for a, b in zip(facts(), before)] == [True] * len(before), facts()
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("way", ["ask", "iterate", "result"])
@pytest.mark.skipif(os.name == "nt", reason="a signal to one's own process ends it on Windows")
def test_ctrl_c_in_the_main_thread_cancels_the_running_request(way: str) -> None:
    code = f"""
import os, signal, threading, time
from ayaedge import AyaVision, CancelledError
model = AyaVision.load()
long = dict(temperature=50.0, seed=1)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    if {way!r} == "ask":
        model.ask("x", **long)
    elif {way!r} == "iterate":
        for _ in model.stream("x", **long): pass
    else:
        model.submit("x", **long).result()
except KeyboardInterrupt:
    started = time.perf_counter()
    print(model.ask({QUESTION!r}, images=[{str(SIX)!r}]).text)
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("2675\n", "")


@pytest.mark.parametrize(
    "last", ["", "handle.cancel()", "del model", "model.close()", "sys.exit(3)", "raise SystemExit(3)"]
)
def test_a_program_may_end_in_the_middle_of_an_answer(last: str) -> None:
    code = f"""
import sys, threading
from ayaedge import AyaVision
begun = threading.Event()
model = AyaVision.load()
handle = model.submit("x", on_text=lambda _: begun.set(), temperature=50.0, seed=1)
waiting = model.submit("x", temperature=50.0, seed=1)
begun.wait()
{last}
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3 if "3" in last else 0, "", "")


NAMES = ["نموذج", "模型 视觉", "मॉडल", "🦜 parrot", "two words", "naïve"]


@pytest.mark.parametrize("name", NAMES)
def test_directories_and_files_may_have_any_name(tmp_path: Path, name: str) -> None:
    bundle = shutil.copytree(demo_bundle(), tmp_path / name / "bundle")
    image = shutil.copy(SIX, tmp_path / f"{name}.png")
    options = CacheOptions(directory=tmp_path / f"cache {name}")
    with AyaVision.load(bundle, cache=options) as model:
        assert model.ask(QUESTION, images=[image]).text == "2675"
        model.ask("Hello", max_tokens=1)
        chat = model.chat()
        chat.ask(QUESTION, images=[image])
        chat.save(tmp_path / f"{name}.ayachat")
        assert model.open_chat(tmp_path / f"{name}.ayachat").turns[0].answer == "2675"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no such signal")
def test_the_flag_is_read_by_a_function_of_the_c_library() -> None:
    """llama.cpp reads the flag without Python, so no busy thread of the program can delay it."""
    code = """
import ctypes, threading
from ayaedge.cancellation import Cancellation
from ayaedge import AyaVision
model = AyaVision.load()
pointer = model._engine.decoder._is_set
flag = Cancellation()
address = ctypes.addressof(flag.buffer)
call = ctypes.PYFUNCTYPE(ctypes.c_bool, ctypes.c_void_p)(ctypes.cast(pointer, ctypes.c_void_p).value)
assert call(address) is False
flag.set()
assert call(address) is True
"""
    assert run(code).stderr == ""
