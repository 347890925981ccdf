from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ayaedge import AyaVision, CacheOptions, DecoderOptions
from ayaedge.bundle import read_bundle
from ayaedge.model import demo_bundle
from ayaedge.tuning import Profile, Settings, Trial, load_profile, profile_path, save_profile, tune

DEMO = read_bundle(demo_bundle())


def test_the_choice_is_the_fastest_of_all_that_were_tried() -> None:
    seen: list[Trial] = []
    profile, trials = tune(DEMO, DecoderOptions(), on_trial=seen.append)
    assert seen == trials
    assert profile.settings is not None
    assert {trial.settings.repack for trial in trials} == {False, True}
    assert len({trial.settings.ubatch_size for trial in trials}) > 1
    last = [trial for trial in trials if trial.settings.repack == profile.settings.repack][-2:]
    assert profile.settings == min(last, key=lambda trial: trial.work_seconds).settings
    speeds = profile.speeds
    assert min(speeds.tile, speeds.prompt_token, speeds.answer_token) > 0
    assert min(speeds.prompt_growth, speeds.answer_growth) >= 0


def test_settings_fill_what_the_options_leave_open(tmp_path: Path) -> None:
    speeds = tune(DEMO, DecoderOptions())[0].speeds
    profile = Profile(speeds, Settings(repack=True, threads=2, threads_batch=1, ubatch_size=128))
    applied = profile.apply(DecoderOptions())
    assert (applied.repack, applied.threads, applied.threads_batch, applied.ubatch_size) == (True, 2, 1, 128)
    given = profile.apply(DecoderOptions(threads=1, repack=False))
    assert (given.repack, given.threads, given.threads_batch, given.ubatch_size) == (False, 1, 1, 128)
    save_profile(profile_path(tmp_path, DEMO), profile)
    with AyaVision.load(cache=CacheOptions(directory=tmp_path)) as model:
        used = model._engine.decoder.options
        assert (used.repack, used.threads, used.threads_batch, used.ubatch_size) == (True, 2, 1, 128)
        assert model.ask("Hi", max_tokens=2).text is not None


def test_the_command_tunes_and_remembers(tmp_path: Path, monkeypatch: object) -> None:
    import os

    environment = {**os.environ, "AYAEDGE_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "ayaedge", "tune", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    data = json.loads(done.stdout)
    profile = load_profile(profile_path(tmp_path, DEMO))
    assert profile is not None
    assert profile.settings is not None
    assert data["profile"]["settings"]["repack"] == profile.settings.repack
    assert len(data["trials"]) >= 2
    assert "remembered" not in done.stdout
