"""Devices that ONNX Runtime can run the vision tower on, and which of them a word means.

What is there is asked of ONNX Runtime and its plug-in providers as they are installed. CUDA and CoreML are part of a
build of ONNX Runtime; WebGPU (Vulkan, Direct3D 12 or Metal below it, so any GPU) and OpenVINO are plug-ins for the
ordinary one. Whether a device computes right is found out in `vision.device_trial`.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ayaedge import ort
from ayaedge.checks import shown
from ayaedge.errors import InvalidOptionError

logger = logging.getLogger(__name__)

CPU_PROVIDER = "CPUExecutionProvider"
BUILT_IN = {"cuda": "CUDAExecutionProvider", "coreml": "CoreMLExecutionProvider"}
"""Devices of a whole build of ONNX Runtime, and its names of them."""
PLUGGED_IN = {"webgpu": "WebGpuExecutionProvider", "openvino": "OpenVINOExecutionProvider"}
"""Devices of plug-ins."""
KINDS = ("cuda", "coreml", "webgpu", "openvino")
"""The best first."""
PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "webgpu": "onnxruntime-ep-webgpu",
    "openvino": "onnxruntime-ep-openvino",
}
"""What to install for a device; CoreML is in the ordinary build for macOS."""
_SAME_HARDWARE = {"metal": "coreml", "vulkan": "webgpu"}
"""The decoder's devices, and what drives the same hardware here."""
_POWER = {True: "low-power", False: "high-performance"}
"""How WebGPU is told which GPU: it chooses by itself, the integrated or the other one."""


@dataclass(frozen=True)
class VisionDevice:
    """A device, as ONNX Runtime sees it."""

    kind: str
    """One of `KINDS`."""
    number: int
    """Among those of its kind."""
    description: str
    integrated: bool = False
    """Uses main memory."""
    is_gpu: bool = True
    version: str = ""
    """Of the plug-in."""

    @property
    def name(self) -> str:
        """What chooses it: `webgpu:0`."""
        return f"{self.kind}:{self.number}"

    @property
    def provider(self) -> str:
        """ONNX Runtime's name of what drives it."""
        return (BUILT_IN | PLUGGED_IN)[self.kind]

    def add_to(self, settings: Any) -> list[str]:
        """Let a session with these SessionOptions run on it; the providers that the session must still be given."""
        if self.kind in BUILT_IN:
            return [self.provider, CPU_PROVIDER]
        options = {"powerPreference": _POWER[self.integrated]} if self.kind == "webgpu" else {}
        handles = [device for device in ort.plugin_devices() if device.ep_name == self.provider]
        ort.add_plugin_device(settings, handles[self.number], options)
        return []


def vision_providers() -> list[str]:
    """The execution providers of the ONNX Runtime that is installed, plug-ins included."""
    plugged = [device.ep_name for device in ort.plugin_devices()]
    return [*ort.library().get_available_providers(), *dict.fromkeys(plugged)]


def vision_devices() -> list[VisionDevice]:
    """Every device that the installed ONNX Runtime and its plug-ins have, the best first."""
    available = ort.library().get_available_providers()
    found = [
        VisionDevice(kind, 0, provider.removesuffix("ExecutionProvider"))
        for kind, provider in BUILT_IN.items()
        if provider in available
    ]
    for kind, provider in PLUGGED_IN.items():
        handles = [device for device in ort.plugin_devices() if device.ep_name == provider]
        found += [_plugged(kind, number, handle) for number, handle in enumerate(handles)]
    return found


def choose_vision(device: str, devices: Sequence[VisionDevice]) -> list[VisionDevice]:
    """The devices that a word stands for, those to be tried first in front; none means the processor.

    `webgpu` is the first of its kind, `webgpu:1` the second; `auto` is every GPU. InvalidOptionError with the command
    that installs it if a device was asked for by name and is missing.
    """
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return []
    if kind == "auto":
        graphics = [one for one in devices if one.is_gpu]
        return sorted(graphics, key=lambda one: (KINDS.index(one.kind), one.integrated, one.number))
    same = [one for one in devices if one.kind == _SAME_HARDWARE.get(kind, kind)]
    if kind == "vulkan":
        logger.info(
            "ONNX Runtime has no Vulkan: the vision tower runs through %s", "WebGPU" if same else "the CPU"
        )
        return same[:1]
    if not same:
        raise InvalidOptionError(_missing(device, _SAME_HARDWARE.get(kind, kind)))
    if not number:
        return sorted(same, key=lambda one: (not one.is_gpu, one.integrated, one.number))[:1]
    if int(number) >= len(same):
        there = ", ".join(f"{one.name} ({one.description})" for one in same)
        raise InvalidOptionError(f"device is {device!r}, but there is only {there}")
    _check_choosable(same[int(number)], same)
    return [same[int(number)]]


def device_fault(name: str, device: object, known: Sequence[str]) -> str | None:
    """A sentence if a device is neither one of the `known` words nor such a word with a number behind it."""
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if device is None or (kind in known and not number and ":" not in str(device)):
        return None
    if kind in KINDS and number.isascii() and number.isdecimal() and len(number) < 3:
        return None
    return f"{name} must be one of {', '.join(known)}, or a device with its number like webgpu:1, not {shown(device)}"


def vision_command(device: str, system: str = "") -> str:
    """The command that installs what a device needs; two builds of ONNX Runtime would overwrite each other."""
    if device in PLUGGED_IN:
        return f'pip install {PACKAGES[device]} "onnxruntime>=1.24.4"'
    then = ";" if (system or platform.system()) == "Windows" else " &&"
    return f"pip uninstall -y onnxruntime{then} pip install {PACKAGES.get(device, 'onnxruntime')}"


def _missing(device: str, kind: str) -> str:
    where = " (on macOS only)" if kind == "coreml" else ""
    if kind in PLUGGED_IN and PLUGGED_IN[kind] in vision_providers():
        return f"device is {device!r}, but ONNX Runtime sees no such device; is its driver installed?"
    return (
        f"device is {device!r}, but the ONNX Runtime that is installed has no {(BUILT_IN | PLUGGED_IN)[kind]}; "
        f"it has {', '.join(vision_providers())}. Install it{where}: {vision_command(kind)}"
    )


def _check_choosable(wanted: VisionDevice, same: Sequence[VisionDevice]) -> None:
    """Raise InvalidOptionError for the second of two GPUs that WebGPU cannot be told apart."""
    alike = [one for one in same if one.integrated == wanted.integrated]
    if wanted.kind == "webgpu" and alike[0] != wanted:
        raise InvalidOptionError(
            f"WebGPU can be told to take the integrated GPU or the other one, and {wanted.name} "
            f"({wanted.description}) is as {alike[0].name}: leave it to the system, or hide that one from it"
        )


def _plugged(kind: str, number: int, handle: Any) -> VisionDevice:
    hardware, about = handle.device, {**handle.device.metadata, **handle.ep_metadata}
    name = about.get("FULL_DEVICE_NAME") or about.get("Description") or ""
    is_gpu, discrete = ort.is_graphics(handle), about.get("Discrete", "1") == "1"
    if kind == "webgpu" and not is_gpu:
        name, is_gpu = "a software driver", True  # only if ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER asks for it
    integrated = is_gpu and (not discrete or about.get("DEVICE_TYPE") == "integrated")
    if not name:
        name = f"{hardware.vendor or 'unknown'} GPU {hardware.device_id:04x}"
    return VisionDevice(kind, number, name, integrated, is_gpu, about.get("version", ""))
