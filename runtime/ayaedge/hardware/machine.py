"""What this computer is: its processor with the instructions that it knows, its memory, and how fast both are.

Threads and memory are those that this process may use, which a container or a service limits. Facts and measurements
only: what follows from them for a model is decided elsewhere. Graphics processors are in
`ayaedge.hardware.devices`.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ayaedge.hardware import cgroups

_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "aarch64": "arm64"}
_INT8_DOT = frozenset({"avx512_vnni", "avx_vnni", "asimddp", "dotprod", "i8mm"})
"""Products of bytes summed in 32 bits: VNNI, and Arm's dot product and matrix instructions."""
_ARM_MAKERS = {
    "0x41": "Arm", "0x46": "Fujitsu", "0x48": "HiSilicon", "0x4e": "NVIDIA", "0x51": "Qualcomm", "0x53": "Samsung",
    "0x61": "Apple", "0x6d": "Microsoft", "0xc0": "Ampere",
}  # fmt: skip
"""`CPU implementer` in /proc/cpuinfo."""
_LINUX_NAMES = {
    "avx1.0": "avx", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "sse41": "sse4_1", "sse42": "sse4_2", "fma3": "fma",
    "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16",
    "feat_dotprod": "asimddp", "feat_i8mm": "i8mm", "feat_bf16": "bf16", "feat_fp16": "asimdhp", "feat_sme": "sme",
    "advsimd": "asimd",
}  # fmt: skip
"""What macOS and numpy call an instruction set, where it is not Linux's name."""
_AVX_VNNI_MODELS = frozenset({151, 154, 170, 172, 181, 183, 186, 189, 190, 191, 197, 198, 204})
"""Intel's family 6 from Alder Lake on: numpy, which answers on Windows, does not look for AVX-VNNI."""
_READ_BYTES = 256_000_000
"""More than the caches of any processor of a laptop."""
_GEMM_SIZE = 1024
_GEMM_SECONDS = 0.2
"""Two periods of a quota of processors' time, as Linux has them by default."""
_ROUNDS = 3


@dataclass(frozen=True)
class Processor:
    """The processor that this process runs on."""

    name: str
    architecture: str
    """`x86_64`, `arm64`, or what the system calls another one."""
    cores: int
    """Physical cores."""
    threads: int
    """`usable_threads()`."""
    features: frozenset[str]
    """Instruction sets, by Linux's names in lower case; empty if the system does not tell."""

    @property
    def saturates(self) -> bool:
        """Whether products of bytes are summed in 16 bits, which cannot hold them: x86 without VNNI."""
        return self.architecture == "x86_64" and not self.has_int8_dot

    @property
    def has_int8_dot(self) -> bool:
        """Whether products of bytes are summed without saturating; True if the system does not tell."""
        return not self.features or not _INT8_DOT.isdisjoint(self.features)


@dataclass(frozen=True)
class Memory:
    """Main memory that this process may use, in bytes."""

    total: int
    available: int
    """What can be taken without swapping, and without being ended or slowed down by a limit."""


@cache
def processor() -> Processor:
    """The processor, asked of the system once."""
    import psutil

    threads = usable_threads()
    name, features = _identify()
    return Processor(
        name=name or platform.machine() or "unknown",
        architecture=architecture(platform.machine()),
        cores=psutil.cpu_count(logical=False) or threads,
        threads=threads,
        features=features,
    )


def usable_threads(system: Path = cgroups.SYSTEM) -> int:
    """Threads that can run at a time: the smaller of the processors allowed and the control groups' quota.

    More would wait for each other, most of all where one waits for the others without sleeping.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, cgroups.whole_processors(system) or allowed)


def memory(system: Path = cgroups.SYSTEM) -> Memory:
    """How much memory there is now: the system's, or less where a control group of this process has less."""
    import psutil

    found = psutil.virtual_memory()
    limits = cgroups.memory_limits(system)
    return Memory(
        min([int(found.total), *(limit.total for limit in limits)]),
        min([int(found.available), *(limit.available for limit in limits)]),
    )


def architecture(machine: str) -> str:
    """One name for what systems call the same: `AMD64`, `x86_64`; `aarch64`, `arm64`."""
    return _ARCHITECTURES.get(machine.lower(), machine.lower())


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Name and features in a text of the form of Linux's /proc/cpuinfo; of unequal cores, what all of them have."""
    fields = re.findall(r"^([^\t:\n]+?)[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    lists = [frozenset(value.lower().split()) for key, value in fields if key in ("flags", "Features")]
    features = frozenset.intersection(*lists) if lists else frozenset()
    first = dict(reversed(fields))
    maker = first.get("CPU implementer", "")
    arm = f"{_ARM_MAKERS.get(maker, maker)} part {first.get('CPU part', '')}" if maker else ""
    return first.get("model name") or first.get("Model") or arm, features


def parse_sysctl(text: str) -> tuple[str, frozenset[str]]:
    """Name and features in what macOS's `sysctl machdep.cpu hw.optional` writes."""
    values = dict(re.findall(r"^([\w.]+): (.*)$", text, re.MULTILINE))
    found = {
        key.rpartition(".")[2]
        for key, value in values.items()
        if key.startswith("hw.optional.") and value == "1"
    }
    for key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
        found.update(values.get(key, "").split())
    return values.get("machdep.cpu.brand_string", ""), linux_names(found)


def parse_windows(identifier: str, numpy_features: Collection[str]) -> tuple[str, frozenset[str]]:
    """Name and features from `platform.processor()` on Windows and what numpy has found."""
    features = set(linux_names(numpy_features))
    intel = re.match(r"Intel64 Family 6 Model (\d+)", identifier)
    if intel and int(intel[1]) in _AVX_VNNI_MODELS:
        features.add("avx_vnni")
    return identifier, frozenset(features)


def linux_names(features: Collection[str]) -> frozenset[str]:
    """Instruction sets as Linux names them, from names of macOS or numpy."""
    lower = {feature.lower().removesuffix("_0") for feature in features}
    return frozenset(_LINUX_NAMES.get(feature, feature) for feature in lower)


def read_bandwidth() -> float:
    """Bytes per second that all threads together read from memory: the limit of decoding; takes under a second."""
    size = min(_READ_BYTES, memory().available // 4)
    threads = usable_threads()
    parts = np.array_split(np.empty(size // 8, np.float64), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: part.fill(1.0), parts))
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = min(best, time.perf_counter() - begin)
    return sum(part.nbytes for part in parts) / best


def gemm_peak(dtype: type[np.float32 | np.float64] = np.float32) -> float:
    """Floating-point operations per second of numpy's matrix product on all threads; takes under a second.

    The best of a few whole periods of the control groups' quotas, within which numpy may take more than its share.
    """
    matrix = np.ones((_GEMM_SIZE, _GEMM_SIZE), dtype)
    product = matrix @ matrix
    best = 0.0
    for _ in range(_ROUNDS):
        begin, count = time.perf_counter(), 0
        while (taken := time.perf_counter() - begin) < _GEMM_SECONDS:
            np.matmul(matrix, matrix, out=product)
            count += 1
        best = max(best, count / taken)
    return 2 * _GEMM_SIZE**3 * best


def _identify() -> tuple[str, frozenset[str]]:
    """Name and features by this system's own way; empty where it has none."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        return parse_cpuinfo(cpuinfo.read_text("utf-8", errors="replace"))
    if platform.system() == "Darwin":
        return parse_sysctl(_sysctl())
    return parse_windows(platform.processor(), _numpy_features())


def _sysctl() -> str:
    command = ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _numpy_features() -> list[str]:
    """What numpy found; the table is not part of its public interface and has moved once."""
    for module in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        try:
            table = __import__(module, fromlist=["__cpu_features__"]).__cpu_features__
        except (ImportError, AttributeError):
            continue
        return [name for name, there in table.items() if there]
    return []
