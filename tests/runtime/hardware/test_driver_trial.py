"""Vulkan's drivers are loaded in a child first, because llama.cpp loads them whatever it is asked."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

import probed
from ayaedge import BackendError, CacheOptions, llama
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.hardware import driver_trial
from ayaedge.hardware.driver_trial import SWITCH, settle_drivers
from ayaedge.planning.device_check import known_verdicts
from ayaedge.planning.placement import resolve


@pytest.fixture
def vulkan(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that has it, as far as can be seen."""
    monkeypatch.setattr(llama, "has_vulkan", lambda: True)
    monkeypatch.setenv(SWITCH, "")  # so that it is put back
    monkeypatch.delenv(SWITCH)


def test_a_driver_that_ends_its_process_is_left_alone_and_doctor_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, vulkan: None
) -> None:
    monkeypatch.setattr(driver_trial, "list_devices", probed.read_nothing)  # which really dies
    cache = CacheOptions(directory=tmp_path)
    fault = settle_drivers(cache.root)
    assert fault is not None
    assert fault.startswith("it ended the process that tried it (")
    monkeypatch.delattr(driver_trial, "list_devices")  # it is not tried twice
    assert os.environ.pop(SWITCH) == "1"
    demo = read_bundle(demo_bundle())
    assert resolve(demo, cache=cache).gpu is None
    assert os.environ[SWITCH] == "1", "in the next process as well"
    with pytest.raises(BackendError, match="vulkan does not work on this machine: it ended"):
        resolve(demo, "vulkan", cache=cache)
    assert [str(verdict) for verdict in known_verdicts(cache.root)] == [
        f"decoder on Vulkan: {fault}: left alone"
    ]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2


def test_drivers_that_load_are_used_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vulkan: None
) -> None:
    assert settle_drivers(tmp_path) is None
    monkeypatch.delattr(driver_trial, "list_devices")
    assert settle_drivers(tmp_path) is None
    assert known_verdicts(tmp_path) == []
    assert SWITCH not in os.environ


def test_without_a_child_to_try_it_vulkan_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vulkan: None
) -> None:
    def refuse(*_: object, seconds: float) -> None:
        raise BackendError("no second process")

    monkeypatch.setattr(driver_trial, "probe", refuse)
    assert settle_drivers(tmp_path) == "no second process"


def test_a_build_without_vulkan_tries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "has_vulkan", lambda: False)
    monkeypatch.delattr(driver_trial, "list_devices")
    assert settle_drivers(tmp_path) is None
