"""No device is trusted that was not seen working here: before first use a child process compares it with the processor.

What came out is remembered for the machine, driver, versions and bundle. A device that computes wrongly, ends the
process or is slower than the processor is left alone by `auto`; one that was named and is not right is an error.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ayaedge.bundle import Bundle
from ayaedge.decoder.device_trial import try_layers
from ayaedge.decoder.weights import choose_layers
from ayaedge.errors import AyaEdgeError, BackendError
from ayaedge.hardware.driver_trial import settle_drivers
from ayaedge.hardware.drivers import driver_identity
from ayaedge.hardware.probes import Result, Verdicts, probe
from ayaedge.hardware.vision_devices import choose_vision, vision_devices
from ayaedge.planning.placement import Placement
from ayaedge.vision.device_trial import try_tower

logger = logging.getLogger(__name__)

SETTING = "device "
"""What the settings of these verdicts begin with."""
_SECONDS = 300.0
"""Longest a trial may take: loading both halves of a 32B from a slow disk, or a driver that is of no use."""
LARGEST_KL = 1e-2
"""Of logits with f16 KV caches and other orders of summation; wrong ones are off by 1 or more."""
_LEAST_COSINE = 0.999
"""Of embeddings; 16-bit floats are at 0.99999 and more."""
_LATE = "no answer"


@dataclass(frozen=True)
class DeviceVerdict:
    """What is known of one half of a bundle on a device."""

    device: str
    """`Vulkan0`, `webgpu:0`."""
    half: str
    """`decoder` or `vision`."""
    gain: float = 0.0
    """How many times as fast as the processor."""
    fault: str = ""
    """Why it is not right; empty if it is."""

    @property
    def is_worth_it(self) -> bool:
        """Whether `auto` takes it."""
        return not self.fault and self.gain > 1

    def __str__(self) -> str:
        if self.fault:
            return f"{self.half} on {self.device}: {self.fault}: left alone"
        slower = "" if self.gain > 1 else ": left alone by auto"
        return f"{self.half} on {self.device}: right, {self.gain:.2g} x the CPU{slower}"


@dataclass(frozen=True)
class _Trial:
    """One half on a device, as it would be tried."""

    half: str
    device: str
    about: str
    """What decides about the outcome beside the driver."""
    named: bool
    """Whether the device was asked for by name."""
    measured: bool
    """Whether it was measured to be the fastest, by more than is tried here."""
    attempt: Callable[..., Any]
    arguments: tuple[Any, ...]

    @property
    def setting(self) -> str:
        return f"{SETTING}{self.half} {self.device} {self.about} {driver_identity()}"


def check_devices(bundle: Bundle, placed: Placement, directory: Path | None) -> Placement:
    """`placed` without the devices that do not work here, or are slower than the processor and were not named.

    What is not known yet is tried in a child; it is remembered in the cache's `directory`, or by this process.
    BackendError for a device that was named and is not right.
    """
    for trial in _trials(bundle, placed):
        if not _accepts(_verdict(trial, directory), trial):
            placed = _without(placed, trial.half)
    return placed


def recall_devices(bundle: Bundle, placed: Placement, directory: Path | None) -> tuple[Placement, list[str]]:
    """`placed` as `check_devices` would leave it by what is remembered, and a sentence for each device.

    Nothing is tried: a device that was not tried here yet stays. Errors as `check_devices`.
    """
    said = []
    for trial in _trials(bundle, placed):
        known = Verdicts(directory).recall(trial.setting)
        if known is None:
            said.append(f"{trial.half} on {trial.device}: not tried yet: the first question will")
            continue
        verdict = _judged(trial.half, trial.device, known)
        said.append(str(verdict))
        if not _accepts(verdict, trial):
            placed = _without(placed, trial.half)
    return placed, said


def uses_devices(bundle: Bundle, placed: Placement) -> bool:
    """Whether a half would run on a device; that alone needs a bundle that was verified, for `check_devices`."""
    device = placed.vision.device or "auto"
    on_gpu = bundle.manifest.gpu_graphs and device != "cpu" and choose_vision(device, vision_devices())
    return bool(placed.decoder.uses_gpu or on_gpu)


def known_verdicts(directory: Path | None) -> list[DeviceVerdict]:
    """What is remembered of devices on this machine as it is now, for any bundle."""
    found, today = [], driver_identity()
    if fault := settle_drivers(directory):
        found.append(DeviceVerdict("Vulkan", "decoder", fault=fault))
    for setting, result in Verdicts(directory).known(SETTING):
        if not setting.endswith(today):
            continue
        half, device, *_ = setting.removeprefix(SETTING).split(" ")
        found.append(_judged(half, device, result))
    return sorted(set(found), key=str)


def _trials(bundle: Bundle, placed: Placement) -> Iterator[_Trial]:
    """Of each half that would not run on the processor."""
    options = placed.decoder
    if options.uses_gpu:
        layers, gpus = choose_layers(bundle.decoder_path, options)
        facts = [(gpu.name, gpu.description) for gpu in gpus]
        formats: tuple[Any, ...] = (
            layers, options.cache_type, options.value_type, options.uses_flash, options.rows_at_once,
        )  # fmt: skip
        if options.offload_prompts is not None:
            formats = (*formats, options.offload_prompts)
        yield _Trial(
            "decoder", ",".join(gpu.name for gpu in gpus),
            f"{facts} {formats} {bundle.hashes[bundle.decoder_path.name]}",
            not placed.measured and (options.device not in (None, "auto") or placed.gpu is None),
            placed.measured, try_layers,
            (str(bundle.directory), dataclasses.asdict(replace(options, gpu_layers=layers))),
        )  # fmt: skip
    device = placed.vision.device or "auto"
    if device == "cpu" or not bundle.manifest.gpu_graphs:
        return
    for chosen in choose_vision(device, vision_devices())[:1]:
        about = f"{chosen.name} {chosen.description} {chosen.version}, {sorted(bundle.manifest.gpu_graphs)}"
        yield _Trial(
            "vision", chosen.name, f"{about}, {bundle.hashes}", device != "auto", False,
            try_tower, (str(bundle.directory), chosen.name),
        )  # fmt: skip


def _without(placed: Placement, half: str) -> Placement:
    """With this half on the processor."""
    if half == "decoder":
        return replace(placed, decoder=replace(placed.decoder, gpu_layers=0, offload_prompts=None))
    return replace(placed, vision=replace(placed.vision, device="cpu"))


def _accepts(verdict: DeviceVerdict, trial: _Trial) -> bool:
    if verdict.fault and trial.named:
        raise BackendError(
            f"{verdict.device} does not work for the {verdict.half} on this machine: {verdict.fault}; "
            "choose another device, or cpu"
        )
    if trial.named or verdict.is_worth_it or (trial.measured and not verdict.fault):
        return True
    logger.log(logging.WARNING if verdict.fault else logging.INFO, "%s; the CPU is used", verdict)
    return False


def _verdict(trial: _Trial, directory: Path | None) -> DeviceVerdict:
    verdicts = Verdicts(directory)
    result = verdicts.recall(trial.setting)
    if result is None:
        logger.info(
            "%s was never tried for the %s here: trying it in a process of its own", trial.device, trial.half
        )
        try:
            result = probe(trial.attempt, *trial.arguments, seconds=_SECONDS)
        except AyaEdgeError as error:
            result = Result({"refused": str(error)})
        if (result.death or "").startswith(_LATE):
            result = Result({"refused": result.death})  # it would be late again
        verdicts.remember(trial.setting, result, value=result.value)
    return _judged(trial.half, trial.device, result)


def _judged(half: str, device: str, result: Result) -> DeviceVerdict:
    if result.death:
        return DeviceVerdict(device, half, fault=f"it ended the process that tried it ({result.death})")
    value = result.value
    try:
        if "refused" in value:
            return DeviceVerdict(device, half, fault=str(value["refused"]))
        gain = float(value["gain"])
        if half == "decoder":
            right = float(value["kl"]) <= LARGEST_KL
        elif value["form"] is None:
            return DeviceVerdict(device, half, fault="it takes none of the bundle's vision graphs")
        else:
            right = float(value["cosine"]) >= _LEAST_COSINE
    except (TypeError, ValueError, KeyError):  # a file of the cache that somebody has changed
        return DeviceVerdict(
            device, half, fault="what is remembered of it makes no sense: ayaedge cache clear"
        )
    return DeviceVerdict(device, half, gain, "" if right else "its results are wrong")
