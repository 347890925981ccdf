from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import probed
from ayaedge import AyaVision, BackendError, BundleError, CacheOptions, DecoderOptions
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.cache.verified import verified
from ayaedge.decoder.repacking import decode_little, repacking_of, require_repacking
from ayaedge.hardware.probes import Result, Verdicts
from ayaedge.hardware.speeds import Speeds
from ayaedge.planning.profile import Profile, Settings, load_profile, profile_path, save_profile

DEMO = verified(read_bundle(demo_bundle()), None)
REPACKED = DecoderOptions(repack=True)
CRASHING = Path(__file__).parents[2] / "crashing_processor"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has exit codes instead of signals")


def run_crashing(*command: str, cache: Path, signal: str = "SIGSEGV") -> subprocess.CompletedProcess[str]:
    """Run Python on a processor where repacked weights end the process."""
    environment = {
        **os.environ, "PYTHONPATH": str(CRASHING), "CRASHING_PROCESSOR": signal, "AYAEDGE_CACHE_DIR": str(cache),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_processor_of_these_tests_crashes(tmp_path: Path) -> None:
    code = (
        "from ayaedge.decoder.repacking import decode_little; from ayaedge.model import demo_bundle\n"
        "decode_little(str(demo_bundle()), {'repack': False}); print('mapped', flush=True)\n"
        "decode_little(str(demo_bundle()), {'repack': True}); print('repacked')"
    )
    done = run_crashing("-c", code, cache=tmp_path, signal="SIGILL")
    assert (done.returncode, done.stdout) == (-4, "mapped\n"), done.stderr


PROGRAM = """
import logging
from ayaedge import NO_CACHE, AyaVision, BackendError, DecoderOptions

logging.basicConfig(level=logging.INFO, format="%(message)s")
for cache in (CACHES):
    try:
        AyaVision.load(decoder=DecoderOptions(repack=True), cache=cache)
    except BackendError as error:
        print(error)
with AyaVision.load(decoder=DecoderOptions(repack=False), cache=NO_CACHE) as model:
    print(len(model.ask("Hi", max_tokens=1).ids), "token")
"""


@pytest.mark.parametrize("caches", ["None, None", "NO_CACHE, NO_CACHE"])
def test_a_program_that_asks_for_it_gets_an_error_after_one_trial_and_lives_on(
    tmp_path: Path, caches: str
) -> None:
    done = run_crashing("-c", PROGRAM.replace("CACHES", caches), cache=tmp_path / "c")
    assert done.returncode == 0, done.stderr
    first, second, last = done.stdout.splitlines()
    assert first == second
    assert "repacked weights do not work on this machine" in first
    assert "SIGSEGV" in first
    assert "`repack`" in first
    assert last == "1 token"
    assert done.stderr.count("was never tried on this machine") == 1
    again = run_crashing("-c", PROGRAM.replace("CACHES", caches), cache=tmp_path / "c")
    assert again.stdout == done.stdout
    assert again.stderr.count("was never tried on this machine") == (caches == "NO_CACHE, NO_CACHE")
    assert (tmp_path / "c").exists() == (caches == "None, None")


def test_tuning_goes_on_without_what_dies_and_remembers_it(tmp_path: Path) -> None:
    done = run_crashing("-m", "ayaedge", "tune", "--json", cache=tmp_path, signal="SIGILL")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    dead = [trial for trial in data["trials"] if trial["death"]]
    assert [(trial["death"], trial["settings"]["repack"], trial["work_seconds"]) for trial in dead] == [
        ("SIGILL", True, None)
    ]
    assert "repacked" in done.stderr
    assert "died: SIGILL" in done.stderr
    assert data["profile"]["settings"]["repack"] is False
    verdicts = list((tmp_path / "ayaedge" / "machine").glob("verdict-*"))
    assert [json.loads(path.read_text())["death"] for path in verdicts] == ["SIGILL"]
    after = run_crashing("-c", PROGRAM.replace("CACHES", "None,"), cache=tmp_path, signal="SIGILL")
    assert "do not work on this machine" in after.stdout
    assert "was never tried" not in after.stderr


class TestThisProcessor:
    """Whatever it is: where repacked weights end the process here, they are refused; where not, they answer."""

    def test_what_was_asked_for_is_tried_once_and_then_used_or_refused(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "ayaedge.hardware.probes")
        for _ in range(2):
            try:
                with AyaVision.load(decoder=REPACKED, cache=CacheOptions(directory=tmp_path)) as model:
                    assert model.ask("Hi", max_tokens=1).ids
            except BackendError as error:
                assert "do not work on this machine" in str(error)
        assert len([line for line in caplog.messages if "never tried" in line]) == 1
        (path,) = (tmp_path / "ayaedge" / "machine").glob("verdict-*")
        assert DEMO.manifest.files["decoder.gguf"].sha256 in json.loads(path.read_text())["setting"]

    def test_what_was_not_asked_for_is_not_tried(self, tmp_path: Path) -> None:
        for options in (DecoderOptions(), DecoderOptions(repack=False)):
            require_repacking(DEMO, options, tmp_path, probed.die_with_repacking)
        assert not list(tmp_path.iterdir())

    def test_a_saved_profile_is_believed_only_as_far_as_it_was_seen(self, tmp_path: Path) -> None:
        settings = Settings(repack=True, threads=1, threads_batch=1, ubatch_size=256)
        root = tmp_path / "ayaedge"
        save_profile(profile_path(root, DEMO), Profile(Speeds(1, 1, 0, 1, 0), settings))
        setting = repacking_of(DEMO, DecoderOptions())
        Verdicts(root).remember(setting, Result(death="SIGILL"))
        assert load_profile(profile_path(root, DEMO)) is not None
        with pytest.raises(BackendError, match="SIGILL"):
            AyaVision.load(cache=CacheOptions(directory=tmp_path))


def test_the_refusal_says_what_the_process_said(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"SIGILL.*it said: tilezero"):
        require_repacking(DEMO, REPACKED, tmp_path, probed.die_with_repacking)


def test_a_bundle_that_cannot_be_loaded_says_so_and_nothing_is_remembered(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="it does not go"):
        require_repacking(DEMO, REPACKED, tmp_path, probed.refuse_repacking)
    assert not (tmp_path / "machine").exists()


def test_layers_on_a_gpu_are_another_setting() -> None:
    assert repacking_of(DEMO, DecoderOptions()) == repacking_of(DEMO, DecoderOptions(gpu_layers=0))
    assert repacking_of(DEMO, DecoderOptions()) != repacking_of(DEMO, DecoderOptions(gpu_layers=3))


@pytest.mark.parametrize("context", [2, 3, 64, None])
def test_a_trial_fits_into_the_smallest_context(context: int | None) -> None:
    decode_little(str(DEMO.directory), {"repack": False, "context_size": context})
