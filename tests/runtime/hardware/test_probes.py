from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ayaedge
import probed
from ayaedge import BackendError, BundleError
from ayaedge.hardware import children, probes
from ayaedge.hardware.probes import Probe, Result, Verdicts, probe

SOON = 60.0
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has exit codes instead of signals")


def test_a_function_runs_in_another_process_with_the_same_path() -> None:
    assert probe(probed.add, 2, 3, seconds=SOON) == Result(5)
    seen = probe(probed.surroundings, seconds=SOON).value
    assert seen["pid"] != os.getpid()
    assert seen["path"] == sys.path


def test_a_path_of_any_letters_and_objects_is_handed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    odd = [str(tmp_path / "\udc80 and \U0001f600 and 'ä'"), Path("ignored")]
    monkeypatch.setattr(sys, "path", [*sys.path, *odd])
    assert probe(probed.surroundings, seconds=SOON).value["path"] == sys.path[:-1]


def test_a_generator_is_asked_in_turn_and_keeps_what_it_has() -> None:
    with Probe(probed.count, 10) as first, Probe(probed.count, 20) as second:
        seen = [child.ask(SOON).value for _ in range(3) for child in (first, second)]
    assert seen == [10, 20, 11, 21, 12, 22]


@needs_signals
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGABRT", "SIGKILL"])
def test_a_death_is_named_and_what_was_said_before_is_kept(name: str) -> None:
    found = probe(probed.die, name, "last words: ä", seconds=SOON)
    assert found == Result(death=name, said="last words: ä")
    assert found.lasts == (name != "SIGKILL")  # as where memory ran out


@needs_signals
def test_an_access_to_no_memory_is_survived() -> None:
    assert probe(probed.read_nothing, seconds=SOON).death == "SIGSEGV"


@needs_signals
def test_a_child_may_die_after_it_has_answered() -> None:
    with Probe(probed.die_the_second_time, "SIGSEGV") as child:
        assert child.ask(SOON) == Result(1)
        assert [child.ask(SOON).death for _ in range(2)] == ["SIGSEGV", "SIGSEGV"]


def test_other_ends_are_told_too_and_do_not_count_for_ever() -> None:
    left, failed = probe(probed.leave, 7, seconds=SOON), probe(probed.fail, seconds=SOON)
    assert (left.death, failed.death) == ("exit code 7", "exit code 1")
    assert "there is no such thing" in failed.said
    assert not left.lasts
    assert not failed.lasts


def test_a_child_that_hangs_is_ended() -> None:
    found = probe(probed.hang, seconds=3)
    assert found.death == "no answer within 3 s"
    assert not found.lasts


@pytest.mark.parametrize("kind", [BackendError, BundleError])
def test_errors_of_ayaedge_come_out_as_they_are(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="it does not go") as caught:
        probe(probed.refuse, kind.__name__, seconds=SOON)
    assert type(caught.value) is kind


@needs_signals
def test_what_libraries_print_does_not_come_between() -> None:
    assert probe(probed.talk, seconds=SOON) == Result("the answer")


def test_the_users_own_program_is_not_run_again(tmp_path: Path) -> None:
    """Without any guard: what multiprocessing would run a second time."""
    program = tmp_path / "program.py"
    program.write_text(
        "import pathlib, sys\n"
        f"log = pathlib.Path({str(tmp_path / 'runs')!r})\n"
        "log.write_text((log.read_text() if log.exists() else '') + 'run ')\n"
        f"sys.path.insert(0, {str(Path(probed.__file__).parent)!r})\n"
        "import probed\n"
        "from ayaedge.hardware.probes import probe\n"
        "print(probe(probed.surroundings, seconds=60).value['main'])\n"
    )
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    for name in ("json", "ayaedge", "sys"):  # the working directory is not part of the program's path
        (outside / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    done = subprocess.run(
        [sys.executable, str(program)], cwd=outside, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr
    assert (tmp_path / "runs").read_text() == "run "


FROZEN = """
import sys
sys.frozen, sys.executable = True, {launcher!r}
sys.path.insert(0, {tests!r})
{support}
import probed
from ayaedge.hardware.probes import probe
print(probe(probed.add, 1, 2, seconds=60))
"""


@needs_signals
def test_a_frozen_program_starts_itself_if_it_says_so_and_is_refused_otherwise(tmp_path: Path) -> None:
    launcher = tmp_path / "app"  # stands for the executable: the main file is what it runs
    for support in ("import ayaedge; ayaedge.freeze_support()", ""):
        main = tmp_path / "main.py"
        tests = str(Path(probed.__file__).parent)
        main.write_text(FROZEN.format(launcher=str(launcher), tests=tests, support=support))
        launcher.write_text(f'#!/bin/sh\nexec {sys.executable} {main} "$@"\n')
        launcher.chmod(0o700)
        done = subprocess.run([str(launcher)], capture_output=True, text=True, check=False, timeout=SOON)
        if support:
            assert done.stdout == "Result(value=3, death=None, said='')\n", done.stderr
        else:
            assert "ayaedge.freeze_support()" in done.stderr
            assert "BackendError" in done.stderr


def test_a_program_that_embeds_python_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from multiprocessing import spawn

    host = tmp_path / "host"
    host.touch()
    for executable in (str(host), str(tmp_path / "python"), "", None):
        monkeypatch.setattr(spawn, "_python_exe", executable)
        with pytest.raises(BackendError, match="has no Python interpreter"):
            probe(probed.add, 1, 2, seconds=SOON)


class TestVerdicts:
    @needs_signals
    def test_a_verdict_is_found_by_without_another_trial(self, tmp_path: Path) -> None:
        found = Verdicts(tmp_path / "c").settle("a setting", probed.die, "SIGSEGV", "oh", seconds=SOON)
        assert found == Result(death="SIGSEGV", said="oh")
        assert Verdicts(tmp_path / "c").settle("a setting", probed.add, 1, 2, seconds=SOON) == found
        assert Verdicts(tmp_path / "c").settle("another", probed.add, 1, 2, seconds=SOON) == Result(3)
        assert Verdicts(tmp_path / "c").recall("another") == Result()
        assert Verdicts(tmp_path / "d").recall("a setting") is None

    def test_the_file_is_for_the_owner_alone_and_names_the_setting(self, tmp_path: Path) -> None:
        Verdicts(tmp_path / "c").remember("a setting", Result(death="SIGILL"))
        (path,) = (tmp_path / "c" / "machine").iterdir()
        assert json.loads(path.read_text()) == {
            "setting": "a setting",
            "value": None,
            "death": "SIGILL",
            "said": "",
        }
        if os.name != "nt":
            assert (path.parent.stat().st_mode & 0o077, path.parent.parent.stat().st_mode & 0o077) == (0, 0)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '"died"', "null"])
    def test_a_damaged_file_counts_for_nothing(self, tmp_path: Path, content: str) -> None:
        verdicts = Verdicts(tmp_path)
        verdicts.remember("a setting", Result())
        (path,) = (tmp_path / "machine").iterdir()
        path.write_text(content)
        assert verdicts.recall("a setting") is None

    @needs_signals
    @pytest.mark.parametrize("place", ["none", "a file is in its place"])
    def test_without_a_directory_this_process_remembers(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "c").touch()
        directory = None if place == "none" else tmp_path / "c"
        setting = f"a setting of this test: {place}"
        assert Verdicts(directory).settle(setting, probed.die, "SIGSEGV", seconds=SOON).death == "SIGSEGV"
        assert Verdicts(directory).settle(setting, probed.add, 1, 2, seconds=SOON).death == "SIGSEGV"
        assert list(tmp_path.iterdir()) == [tmp_path / "c"]

    def test_what_may_be_otherwise_the_next_time_is_not_remembered(self, tmp_path: Path) -> None:
        verdicts = Verdicts(tmp_path / "c")
        for death in ("SIGKILL", "SIGTERM", "exit code 1", "no answer within 3 s"):
            verdicts.remember("a setting", Result(death=death))
            assert verdicts.recall("a setting") is None
        assert not (tmp_path / "c").exists()

    def test_another_processor_and_other_versions_know_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dataclasses import replace

        from ayaedge import llama
        from ayaedge.hardware.machine import processor

        verdicts = Verdicts(tmp_path)
        verdicts.remember("a setting", Result())
        here = processor()
        for other in (replace(here, name="Other"), replace(here, features=here.features ^ {"amx_tile"})):
            monkeypatch.setattr(probes, "processor", lambda other=other: other)
            assert verdicts.recall("a setting") is None
        monkeypatch.undo()
        assert verdicts.recall("a setting") == Result()
        monkeypatch.setattr(llama.library(), "__version__", "0.0")
        assert verdicts.recall("a setting") is None


def test_importing_ayaedge_starts_and_writes_nothing() -> None:
    assert not children._restarts
    assert ayaedge.hardware.children is children
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
