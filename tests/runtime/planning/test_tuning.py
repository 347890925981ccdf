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
from ayaedge.decoder import weights
from ayaedge.decoder.acceleration import usable_kernels
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.repacking import repacking_of
from ayaedge.hardware.devices import Device, Gpu
from ayaedge.hardware.probes import Result, Verdicts
from ayaedge.hardware.speeds import Speeds
from ayaedge.planning import device_check, placement, tuning
from ayaedge.planning.device_check import check_devices
from ayaedge.planning.gpu_plan import gpu_bytes, reserve
from ayaedge.planning.placement import other_places, resolve
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


GPU = Gpu("CUDA0", "made up", "cuda", 9 * 10**9, 8 * 10**9)


@pytest.fixture
def made_up_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Result]:
    """What trials of it give, in turns; its speeds are made up as well."""
    verdicts: list[Result] = [Result({"kl": 1e-7, "gain": 0.5})]
    for module in (placement, weights):
        monkeypatch.setattr(module, "decoder_gpus", lambda: [GPU])
    monkeypatch.setattr(tuning, "measure", probed.measure_by_place)
    monkeypatch.setattr(tuning, "measure_growth", probed.measure_growth_of_nothing)
    monkeypatch.setattr(device_check, "probe", lambda *_, seconds: verdicts[0])
    return verdicts


def places(trials: list[Trial]) -> dict[tuple[str | None, int | None, bool | None], Trial]:
    found = [(trial.settings, trial) for trial in trials]
    return {(one.device, one.gpu_layers, one.offload_prompts): trial for one, trial in found}


def test_devices_layers_and_prompts_alone_are_compared_and_the_fastest_is_used(
    made_up_gpu: list[Result], tmp_path: Path
) -> None:
    cache = CacheOptions(directory=tmp_path)
    profile, trials = tune(DEMO, DecoderOptions(), cache=cache)
    every = read_figures(DEMO.decoder_path).layers + 1
    assert set(places(trials)) == {
        ("cpu", 0, False), ("cuda", every, False), ("cuda", every // 2, False), ("cuda", 0, True),
    }  # fmt: skip
    assert profile.settings is not None
    best = profile.settings
    assert (best.device, best.gpu_layers, best.offload_prompts) == ("cuda", 0, True), (
        "prompts there, answers here"
    )
    assert profile.acceleration == "off"

    assert cache.root is not None
    save_profile(profile_path(cache.root, DEMO), profile)
    placed = check_devices(DEMO, resolve(DEMO, cache=cache), cache.root)
    used = placed.decoder
    assert (used.device, used.gpu_layers, used.offload_prompts) == ("cuda", 0, True)
    assert placed.gpu is not None
    assert placed.gpu.bytes_used > 0
    assert "prompts are computed in 8.0 GB of graphics memory" in placed.gpu.reason
    for device, options in (("cpu", None), ("auto", DecoderOptions(gpu_layers=2))):
        chosen = resolve(DEMO, device, options, cache=cache).decoder  # type: ignore[arg-type]
        assert chosen.offload_prompts is None
        assert chosen.gpu_layers == (2 if options else None)


def test_a_device_that_is_wrong_is_not_measured_and_one_that_breaks_later_is_left_alone(
    made_up_gpu: list[Result], tmp_path: Path
) -> None:
    made_up_gpu[0] = Result({"kl": 1.0, "gain": 9.0})
    profile, trials = tune(DEMO, DecoderOptions(), cache=CacheOptions(directory=tmp_path / "another"))
    assert profile.settings is not None
    assert profile.settings.device == "cpu"
    refused = [trial for trial in trials if trial.fault]
    assert len(refused) == 3
    assert all("results are wrong" in str(trial.fault) for trial in refused)

    other = CacheOptions(directory=tmp_path / "broken")
    assert other.root is not None
    right = Settings(False, 1, 1, 256, "cuda", 0, True)
    save_profile(profile_path(other.root, DEMO), Profile(Speeds(1, 1, 0, 1, 0), right))
    used = check_devices(DEMO, resolve(DEMO, cache=other), other.root).decoder
    assert (used.gpu_layers, used.uses_gpu) == (0, False)


def test_what_was_tuned_takes_no_more_than_is_free_now(
    made_up_gpu: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheOptions(directory=tmp_path)
    settings = Settings(False, 1, 1, 256, "cuda", 5, False)
    assert cache.root is not None
    save_profile(profile_path(cache.root, DEMO), Profile(Speeds(1, 1, 0, 1, 0), settings))
    assert resolve(DEMO, cache=cache).decoder.gpu_layers == 5
    figures = read_figures(DEMO.decoder_path)
    context = DecoderOptions().context_of(DEMO.manifest.decoder.context_length)
    room = reserve(0) + gpu_bytes(figures, 3, context=context, batch=256)
    cramped = dataclasses.replace(GPU, free_bytes=room)
    monkeypatch.setattr(placement, "decoder_gpus", lambda: [cramped])
    assert resolve(DEMO, cache=cache).decoder.gpu_layers == 3
    monkeypatch.setattr(placement, "decoder_gpus", list)
    assert resolve(DEMO, cache=cache).decoder.gpu_layers is None, (
        "without the device as if nothing was measured"
    )


def test_layers_or_a_device_by_name_leave_nothing_else_to_compare(made_up_gpu: list[Result]) -> None:
    def compared(device: Device, options: DecoderOptions) -> set[str]:
        return {place["device"] for place in other_places(DEMO, resolve(DEMO, device, options), options)}

    assert compared("auto", DecoderOptions()) == compared("cuda", DecoderOptions()) == {"cuda"}
    assert compared("cpu", DecoderOptions()) == set()
    assert compared("auto", DecoderOptions(gpu_layers=2)) == set()
    assert compared("auto", DecoderOptions(gpu_layers=0, offload_prompts=True)) == set()
