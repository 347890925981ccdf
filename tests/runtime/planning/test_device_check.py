"""A device is used by `auto` only where a child process saw it compute right, and faster than the processor."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ayaedge import BackendError, DecoderOptions, VisionOptions
from ayaedge.bundle import Bundle
from ayaedge.cache.verified import verified
from ayaedge.hardware import drivers
from ayaedge.hardware.drivers import driver_identity
from ayaedge.hardware.probes import Result
from ayaedge.hardware.vision_devices import VisionDevice
from ayaedge.planning import device_check
from ayaedge.planning.device_check import DeviceVerdict, check_devices, known_verdicts
from ayaedge.planning.placement import Placement

GPU = VisionDevice("webgpu", 0, "made up")


@pytest.fixture
def bundle(portable_bundle: Bundle) -> Bundle:
    return verified(portable_bundle, None)


def placed(device: str) -> Placement:
    return Placement(DecoderOptions(gpu_layers=0), VisionOptions(device=device), None, None)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What trials give, one after the other; a made-up device is there to be tried."""
    results: list[Any] = []
    monkeypatch.setattr(device_check, "vision_devices", lambda: [GPU])
    monkeypatch.setattr(device_check, "probe", lambda *_, seconds: results.pop(0))
    return results


RIGHT = Result({"form": "fp16", "cosine": 0.99999, "gain": 3.14})
SLOW = Result({"form": "fp32", "cosine": 1.0, "gain": 0.4})
WRONG = Result({"form": "fp16", "cosine": 0.9, "gain": 9.0})
NONE = Result({"form": None, "cosine": 0.0, "gain": 0.0})
DEAD = Result(death="SIGABRT")
LATE = Result(death="no answer within 300 s")


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (RIGHT, "vision on webgpu:0: right, 3.1 x the CPU"),
        (SLOW, "vision on webgpu:0: right, 0.4 x the CPU: left alone by auto"),
        (WRONG, "vision on webgpu:0: its results are wrong: left alone"),
        (NONE, "vision on webgpu:0: it takes none of the bundle's vision graphs: left alone"),
        (DEAD, "vision on webgpu:0: it ended the process that tried it (SIGABRT): left alone"),
        (LATE, "vision on webgpu:0: no answer within 300 s: left alone"),
        (Result({"gain": "much"}), "ayaedge cache clear"),
    ],
    ids=["right", "slow", "wrong", "none", "dead", "late", "nonsense"],
)
def test_auto_takes_what_is_right_and_faster_tries_once_and_doctor_knows(
    bundle: Bundle, tmp_path: Path, trials: list[Any], result: Result, said: str
) -> None:
    trials.append(result)
    for _ in range(2):  # the second time nothing is left to be tried
        found = check_devices(bundle, placed("auto"), tmp_path)
        assert found.vision.device == ("auto" if result is RIGHT else "cpu")
    (verdict,) = known_verdicts(tmp_path)
    assert said in str(verdict)


def test_a_named_device_is_used_if_it_is_right_and_an_error_if_not(
    bundle: Bundle, tmp_path: Path, trials: list[Any]
) -> None:
    trials += [SLOW, WRONG]
    assert check_devices(bundle, placed("webgpu"), tmp_path / "a").vision.device == "webgpu"
    with pytest.raises(BackendError, match="webgpu:0 does not work for the vision on this machine"):
        check_devices(bundle, placed("webgpu"), tmp_path / "b")


def test_another_driver_is_tried_anew(
    bundle: Bundle, tmp_path: Path, trials: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trials += [DEAD, RIGHT]
    assert check_devices(bundle, placed("auto"), tmp_path).vision.device == "cpu"
    before = driver_identity()
    icd = tmp_path / "new_icd.json"
    icd.write_text("{}")
    monkeypatch.setenv("VK_DRIVER_FILES", str(icd))
    assert driver_identity() != before
    assert check_devices(bundle, placed("auto"), tmp_path).vision.device == "auto"
    assert known_verdicts(tmp_path) == [DeviceVerdict("webgpu:0", "vision", 3.14)], "of this driver alone"


def test_nothing_is_tried_for_the_processor_or_without_a_graph_for_gpus(
    bundle: Bundle, exact_bundle: Bundle, tmp_path: Path, trials: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert check_devices(bundle, placed("cpu"), tmp_path) == placed("cpu")
    assert "tried" not in caplog.text


def test_the_driver_is_known_by_files_that_installing_another_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "_VULKAN", (str(tmp_path),))
    before = driver_identity()
    (tmp_path / "radeon_icd.json").write_text("{}")
    assert driver_identity() != before
