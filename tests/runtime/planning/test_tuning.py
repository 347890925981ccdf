from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import probed
from ayaedge import AyaVision, BackendError, CacheOptions, DecoderOptions
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.cache.verified import verified
from ayaedge.cli.plan import _trial_table
from ayaedge.decoder.acceleration import usable_kernels
from ayaedge.decoder.repacking import repacking_of
from ayaedge.hardware.probes import Result, Verdicts
from ayaedge.hardware.speeds import Speeds
from ayaedge.planning import tuning
from ayaedge.planning.profile import Profile, Settings, load_profile, profile_path, save_profile
from ayaedge.planning.tuning import Trial, _fastest, tune

pytestmark = pytest.mark.usefixtures("all_processors")

IMAGE = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
DEMO = verified(read_bundle(demo_bundle()), None)


def test_the_choice_is_the_fastest_of_all_that_were_tried() -> None:
    seen: list[Trial] = []
    profile, trials = tune(DEMO, DecoderOptions(), on_trial=seen.append)
    assert seen == trials
    assert profile.settings is not None
    assert {trial.settings.repack for trial in trials} == {False, True}
    assert len({trial.settings.ubatch_size for trial in trials}) > 1
    last = [trial for trial in trials if trial.settings.repack == profile.settings.repack][-2:]
    times = {trial.settings: trial.work_seconds for trial in last if trial.work_seconds is not None}
    assert profile.settings == min(times, key=lambda settings: times[settings])
    speeds = profile.speeds
    assert min(speeds.tile, speeds.prompt_token, speeds.answer_token) > 0
    assert min(speeds.prompt_growth, speeds.answer_growth) >= 0


def test_settings_fill_what_the_options_leave_open(tmp_path: Path) -> None:
    settings = Settings(repack=True, threads=2, threads_batch=1, ubatch_size=128)
    profile = Profile(Speeds(1, 1, 0, 1, 0), settings)
    applied = profile.apply(DecoderOptions())
    assert (applied.repack, applied.threads, applied.threads_batch, applied.ubatch_size) == (True, 2, 1, 128)
    given = profile.apply(DecoderOptions(threads=1, repack=False))
    assert (given.repack, given.threads, given.threads_batch, given.ubatch_size) == (False, 1, 1, 128)
    mapped = dataclasses.replace(settings, repack=False)  # which works on every processor
    save_profile(profile_path(tmp_path / "ayaedge", DEMO), dataclasses.replace(profile, settings=mapped))
    with AyaVision.load(cache=CacheOptions(directory=tmp_path)) as model:
        used = model._engine.decoder.options
        assert (used.repack, used.threads, used.threads_batch, used.ubatch_size) == (False, 2, 1, 128)
        assert model.ask("Hi", max_tokens=2).text is not None


def test_a_kernel_by_name_is_not_refused_for_weights_that_tuning_would_repack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = Settings(repack=True, threads=1, threads_batch=1, ubatch_size=512)
    profile = Profile(Speeds(1, 1, 0, 1, 0), settings)
    monkeypatch.setenv("AYAEDGE_ACCELERATION", "off")
    assert profile.apply(DecoderOptions()).repack
    assert profile.apply(DecoderOptions(acceleration="off")).repack
    named = profile.apply(DecoderOptions(acceleration="scalar"))
    assert (named.repack, named.threads, named.ubatch_size) == (None, 1, 512)
    monkeypatch.setenv("AYAEDGE_ACCELERATION", "scalar")
    assert profile.apply(DecoderOptions()).repack is None
    assert profile.apply(DecoderOptions(acceleration="off")).repack


def test_a_trial_that_died_is_shown_and_never_chosen() -> None:
    mapped, repacked = (
        Settings(repack=repack, threads=2, threads_batch=2, ubatch_size=256) for repack in (False, True)
    )
    trials = [Trial(mapped, 0.01, 0.1, 40.0), Trial(repacked, death="SIGSEGV")]
    assert _fastest(trials) == mapped
    console = Console(width=120, file=io.StringIO())
    console.print(_trial_table(trials, Profile(Speeds(1, 1, 0, 1, 0), mapped)))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert any("mapped" in line and "100.0" in line and "40.0" in line for line in lines)
    assert any("repacked" in line and "died: SIGSEGV" in line for line in lines)
    with pytest.raises(BackendError, match=r"every process.*SIGSEGV"):
        _fastest(trials[1:])


def test_each_rival_has_a_process_of_its_own_and_one_that_dies_later_counts_as_dead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "measure", probed.measure_until_repacking_dies)
    profile, trials = tune(DEMO, DecoderOptions(), cache=CacheOptions(directory=tmp_path))
    first = trials[:2]
    assert {(trial.settings.repack, trial.death) for trial in first} == {(False, None), (True, "SIGSEGV")}
    assert profile.settings is not None
    assert not profile.settings.repack
    assert Verdicts(tmp_path / "ayaedge").recall(repacking_of(DEMO, DecoderOptions(gpu_layers=0))) == Result(
        death="SIGSEGV"
    )


def test_the_command_tunes_and_remembers(tmp_path: Path, monkeypatch: object) -> None:
    kernel = (*usable_kernels(), None)[0]
    environment = {**os.environ, "AYAEDGE_CACHE_DIR": str(tmp_path), "AYAEDGE_ACCELERATION": kernel or "off"}
    command = [sys.executable, "-m", "ayaedge", "tune", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    data = json.loads(done.stdout)
    profile = load_profile(profile_path(tmp_path / "ayaedge", DEMO))
    assert profile is not None
    assert profile.settings is not None
    assert data["profile"]["settings"]["repack"] == profile.settings.repack
    assert len(data["trials"]) >= 2
    assert data["acceleration"]["kernel"] == kernel
    assert (data["acceleration"]["gain"] > 0) is bool(kernel)
    assert f"acceleration {kernel or 'off'}" in done.stderr
    assert "remembered" not in done.stdout


def test_speeds_of_another_kernel_are_measured_anew(tmp_path: Path) -> None:
    path = profile_path(tmp_path / "ayaedge", DEMO)
    slow = Speeds(9.0, 9.0, 0.0, 9.0, 0.0)
    for kernel, believed in (("off", True), ("another", False)):
        save_profile(path, Profile(slow, acceleration=kernel))
        with AyaVision.load(
            decoder=DecoderOptions(acceleration="off"), cache=CacheOptions(directory=tmp_path)
        ) as model:
            model.ask("?", images=[IMAGE], max_tokens=1, max_tiles=1, tiles="auto")
        known = load_profile(path)
        assert known is not None
        assert (known.speeds == slow, known.acceleration) == (believed, "off")
