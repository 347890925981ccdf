"""The command that shows what this computer and the installed libraries can do, and what would make them faster.

Facts are collected in one place; the report and the advice are made from them alone.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from ayaedge import __version__, llama, ort
from ayaedge.cache.options import NAME_ANOTHER, cache_directory
from ayaedge.cli.console import JsonFlag, print_table, size_text, stderr, write_json, write_line
from ayaedge.decoder.kernel_trial import NO_KERNEL, Verdict, judge
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import printable
from ayaedge.files import matching
from ayaedge.hardware import machine
from ayaedge.hardware.devices import (
    BACKENDS,
    Gpu,
    decoder_backends,
    decoder_command,
    decoder_gpus,
    decoder_wheel_command,
)
from ayaedge.hardware.machine import Memory, Processor
from ayaedge.hardware.vision_devices import (
    BUILT_IN,
    KINDS,
    PACKAGES,
    PLUGGED_IN,
    VisionDevice,
    vision_command,
    vision_devices,
    vision_providers,
)
from ayaedge.planning.device_check import known_verdicts

_INSTRUCTIONS = {
    "x86_64": {
        "AVX2": ("avx2",), "AVX-512": ("avx512f",), "VNNI": ("avx512_vnni", "avx_vnni"),
        "AMX": ("amx_int8", "amx_tile"), "bf16": ("avx512_bf16", "amx_bf16"),
    },
    "arm64": {
        "dotprod": ("asimddp", "dotprod"), "i8mm": ("i8mm",), "bf16": ("bf16",), "fp16": ("asimdhp",),
        "SVE": ("sve",), "SME": ("sme",),
    },
}  # fmt: skip
"""Instruction sets that decide about speed here, and the features of which one is enough."""
_SUITS = {"cuda": "an NVIDIA GPU", "metal": "Apple's GPU", "vulkan": "any GPU with a Vulkan driver",
          "webgpu": "any GPU", "coreml": "Apple's GPU and Neural Engine",
          "openvino": "an Intel processor or GPU"}  # fmt: skip
_SYSTEMS = {
    "cuda": ("Linux", "Windows"), "vulkan": ("Linux", "Windows"), "metal": ("Darwin",),
    "webgpu": ("Linux", "Windows", "Darwin"), "coreml": ("Darwin",), "openvino": ("Linux", "Windows"),
}  # fmt: skip
_ALSO_ON_ARM = {"cuda": (), "openvino": (), "webgpu": ("Linux", "Windows", "Darwin"), "coreml": ("Darwin",)}
"""Systems on Arm for which someone builds a device's ONNX Runtime or plug-in."""


_TELEMETRY = "ONNX Runtime was loaded before ayaedge and may have sent some: set ORT_DISABLE_TELEMETRY=1"


@dataclass(frozen=True)
class Cache:
    """The directory of everything that is kept between processes."""

    directory: str | None
    """None for a user without a home directory."""
    files: int
    bytes: int


@dataclass(frozen=True)
class Speed:
    """What was measured."""

    memory_bytes_per_second: float
    float32_operations_per_second: float


@dataclass(frozen=True)
class Facts:
    """Everything that the report is made of."""

    system: str
    """`Linux`, `Darwin` or `Windows`."""
    processor: Processor
    memory: Memory
    decoder_gpus: list[Gpu]
    decoder_backends: list[str]
    vision_providers: list[str]
    vision_devices: list[VisionDevice]
    llama_build: str
    """What llama.cpp says about itself."""
    versions: dict[str, str]
    telemetry: bool
    """Whether ONNX Runtime was loaded before it could be told to send nothing."""
    cache: Cache
    speed: Speed
    devices_tried: list[str] = field(default_factory=list)
    """What is remembered of devices: whether they are right, and how fast, for the bundles that were loaded here."""
    acceleration: Verdict = NO_KERNEL
    """What is known of the best of our kernels for a prefill."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; features in order, advice included."""
        data = asdict(self)
        data["processor"]["features"] = sorted(self.processor.features)
        data["processor"]["has_int8_dot"] = self.processor.has_int8_dot
        return {**data, "missing": [asdict(missing) for missing in find_missing(self)]}


@dataclass(frozen=True)
class Missing:
    """Something that is not installed and would make sense on this system."""

    half: str
    """`decoder` or `vision`."""
    device: str
    suits: str
    """The hardware that it is for; whether that is there cannot be known without it."""
    command: str
    prebuilt: str | None = None
    """The command that takes what others have built for common processors, if there is such a thing."""


def doctor(as_json: JsonFlag = False) -> None:
    """Show what this computer and the installed libraries can do, and how to install what is missing."""
    with stderr.status("measuring memory and processor"):
        facts = collect()
    if as_json:
        write_json(facts.to_dict())
        return
    print_table(report(facts))
    for missing in find_missing(facts):
        write_line(f"To use {missing.suits} for the {missing.half} ({missing.device}):")
        if missing.prebuilt:
            write_line(f"  {missing.prebuilt}\nor, with a compiler, built for this very processor:")
        write_line(f"  {missing.command}")


def collect() -> Facts:
    """Ask the system and the libraries, and measure; takes about a second."""
    tried = [str(verdict) for verdict in known_verdicts(cache_directory())]  # first: it keeps bad drivers off
    return Facts(
        system=platform.system(),
        processor=machine.processor(),
        memory=machine.memory(),
        decoder_gpus=decoder_gpus(),
        decoder_backends=decoder_backends(),
        vision_providers=vision_providers(),
        vision_devices=vision_devices(),
        llama_build=llama.library().llama_print_system_info().decode().strip(" |"),
        versions=_versions(),
        telemetry=ort.loaded_before,
        cache=_cache(),
        speed=Speed(machine.read_bandwidth(), machine.gemm_peak()),
        devices_tried=tried,
        acceleration=judge(DecoderOptions(), cache_directory()),
    )


def report(facts: Facts) -> Table:
    """All facts, a row each."""
    table = Table(show_header=False)
    for section in (_machine_rows, _device_rows, _software_rows):
        for name, value in section(facts):
            table.add_row(printable(name), printable(value))
        table.add_section()
    return table


def find_missing(facts: Facts) -> list[Missing]:
    """What could be installed on this system and is not."""
    decoder = [
        Missing(
            "decoder",
            backend,
            _SUITS[backend],
            decoder_command(backend, facts.system),
            _wheel(backend, facts),
        )
        for backend in BACKENDS
        if facts.system in _SYSTEMS[backend] and backend not in facts.decoder_backends
    ]
    vision = [
        Missing("vision", device, _SUITS[device], vision_command(device, facts.system))
        for device in KINDS
        if (BUILT_IN | PLUGGED_IN)[device] not in facts.vision_providers and _has_package(device, facts)
    ]
    return decoder + vision


def _wheel(backend: str, facts: Facts) -> str | None:
    """The author's wheels for GPUs are for ordinary PCs, and for Apple's processors."""
    built = (facts.processor.architecture == "arm64") == (facts.system == "Darwin")
    return decoder_wheel_command(backend) if built else None


def _has_package(device: str, facts: Facts) -> bool:
    """Whether someone builds what the device needs for this system."""
    if facts.processor.architecture == "x86_64" and facts.system == "Darwin" and device in PACKAGES:
        return False  # WebGPU's plug-in is for Apple's own processors
    systems = _SYSTEMS if facts.processor.architecture == "x86_64" else _ALSO_ON_ARM
    return facts.system in systems[device]


def _machine_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    processor, speed = facts.processor, facts.speed
    yield "processor", f"{processor.name}, {processor.architecture}"
    yield "cores", f"{processor.cores}, {processor.threads} threads for this process"
    yield "instructions", _instructions(processor)
    yield "memory", f"{size_text(facts.memory.total)}, {size_text(facts.memory.available)} available"
    yield "memory speed", f"{speed.memory_bytes_per_second / 1e9:.1f} GB/s read"
    yield "arithmetic", f"{speed.float32_operations_per_second / 1e9:.0f} GFLOP/s in float32"


def _device_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "llama.cpp for", ", ".join(facts.decoder_backends)
    for gpu in facts.decoder_gpus:
        room = f"{size_text(gpu.free_bytes)} of {size_text(gpu.total_bytes)} free"
        shared = ", main memory" if gpu.integrated else ""
        yield "llama.cpp sees", f"{gpu.name}: {gpu.description}, {room}{shared}"
    if not facts.decoder_gpus:
        yield "llama.cpp sees", "no GPU"
    yield "ONNX Runtime for", ", ".join(facts.vision_providers)
    for device in facts.vision_devices:
        shared = ", main memory" if device.integrated else ""
        yield "ONNX Runtime sees", f"{device.name}: {device.description}{shared}"
    if not facts.vision_devices:
        yield "ONNX Runtime sees", "no GPU"
    for tried in facts.devices_tried:
        yield "tried here", tried


def _software_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    yield "llama.cpp build", facts.llama_build
    yield "acceleration", _acceleration(facts.acceleration)
    yield "versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    yield "telemetry", _TELEMETRY if facts.telemetry else "off (ONNX Runtime's; nothing else has one)"
    kept = f"{facts.cache.directory}: {facts.cache.files} files, {size_text(facts.cache.bytes)}"
    yield "cache", kept if facts.cache.directory else f"none: no home directory; {NAME_ANOTHER}"


def _instructions(processor: Processor) -> str:
    if not processor.features:
        return "the system does not tell"
    known = _INSTRUCTIONS.get(processor.architecture, {})
    return ", ".join(
        f"{name} {'no' if processor.features.isdisjoint(features) else 'yes'}"
        for name, features in known.items()
    )


def _acceleration(verdict: Verdict) -> str:
    if verdict.kernel is None:
        return f"none: {verdict.reason}"
    if verdict.reason:
        return f"none: {_failure(verdict)}"
    found = verdict.text if verdict.is_worth_it else f"not worth it: {verdict.text}"
    return "; ".join([found, *map(_failure, verdict.passed_over)])


def _failure(verdict: Verdict) -> str:
    return f"{verdict.kernel} does not work here: {verdict.reason}"


def _versions() -> dict[str, str]:
    import numpy
    import PIL

    return {
        "ayaedge": __version__,
        "onnxruntime": ort.library().__version__,
        "llama-cpp-python": llama.library().__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def _cache() -> Cache:
    directory, sizes = cache_directory(), []
    if directory is None:
        return Cache(None, 0, 0)
    for path in matching(directory, "**/*"):
        with suppress(OSError):  # another process may have removed it
            if path.is_file():
                sizes.append(path.stat().st_size)
    return Cache(str(directory), len(sizes), sum(sizes))
