"""What a computer is, from texts as systems write them, and the measurements of this one."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

import numpy as np
import pytest

from ayaedge.hardware.machine import (
    Processor,
    architecture,
    gemm_peak,
    linux_names,
    memory,
    parse_cpuinfo,
    parse_sysctl,
    parse_windows,
    processor,
    read_bandwidth,
    usable_threads,
)

ROOT = Path(__file__).parents[3]
ZEN4 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD Ryzen 7 7840U w/ Radeon 780M Graphics
flags\t\t: fpu avx avx2 fma avx512f avx512_bf16 avx512_vnni
bugs\t\t: sysret_ss_attrs
"""
HASWELL = """processor\t: 0
model name\t: Intel(R) Core(TM) i5-4300U CPU @ 1.90GHz
flags\t\t: fpu sse4_2 avx avx2 fma f16c
"""
SNAPDRAGON = """processor\t: 0
BogoMIPS\t: 38.40
Features\t: fp asimd aes asimdhp asimddp i8mm bf16
CPU implementer\t: 0x51
CPU architecture: 8
CPU part\t: 0x001
"""
RASPBERRY_PI_4 = """processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08

Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
APPLE_M2 = """machdep.cpu.cores_per_package: 8
machdep.cpu.brand_string: Apple M2
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_SME: 0
hw.optional.arm.AdvSIMD: 1
"""
INTEL_MAC = """machdep.cpu.features: FPU SSE4.2 AVX1.0 FMA
machdep.cpu.leaf7_features: AVX2 AVX512F AVX512VNNI
machdep.cpu.brand_string: Intel(R) Core(TM) i7-1068NG7 CPU @ 2.30GHz
hw.optional.avx2_0: 1
"""
ALDER_LAKE = "Intel64 Family 6 Model 154 Stepping 3, GenuineIntel"
COFFEE_LAKE = "Intel64 Family 6 Model 158 Stepping 10, GenuineIntel"


def made_up(features: frozenset[str], arch: str = "x86_64") -> Processor:
    return Processor("made up", arch, 4, 8, features)


@pytest.mark.parametrize(
    ("text", "name", "feature", "int8_dot"),
    [
        (ZEN4, "AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "avx512_bf16", True),
        (HASWELL, "Intel(R) Core(TM) i5-4300U CPU @ 1.90GHz", "avx2", False),
        (SNAPDRAGON, "Qualcomm part 0x001", "i8mm", True),
        (RASPBERRY_PI_4, "Raspberry Pi 4 Model B Rev 1.4", "asimd", False),
    ],
    ids=["zen4", "haswell", "snapdragon", "raspberry"],
)
def test_linux_tells_name_and_features(text: str, name: str, feature: str, int8_dot: bool) -> None:
    found, features = parse_cpuinfo(text)
    assert found == name
    assert feature in features
    assert made_up(features).has_int8_dot is int8_dot


def test_of_unequal_cores_only_what_all_have_counts() -> None:
    lesser = SNAPDRAGON.replace(" i8mm bf16", "")
    _, features = parse_cpuinfo(f"{SNAPDRAGON}\n{lesser}")
    assert features == {"fp", "asimd", "aes", "asimdhp", "asimddp"}


@pytest.mark.parametrize("text", ["", "nonsense", "processor\t: 0\n\n", ": :\n"])
def test_a_text_without_features_says_nothing(text: str) -> None:
    assert parse_cpuinfo(text) == ("", frozenset())
    assert parse_sysctl(text) == ("", frozenset())


def test_macos_names_become_linux_names() -> None:
    assert parse_sysctl(APPLE_M2) == ("Apple M2", {"asimddp", "i8mm", "bf16", "asimd"})
    name, features = parse_sysctl(INTEL_MAC)
    assert name.startswith("Intel(R) Core(TM) i7")
    assert features == {"fpu", "sse4_2", "avx", "fma", "avx2", "avx512f", "avx512_vnni"}


def test_windows_knows_avx_vnni_by_the_model() -> None:
    found = ["AVX2", "FMA3"]
    assert parse_windows(ALDER_LAKE, found) == (ALDER_LAKE, {"avx2", "fma", "avx_vnni"})
    assert not made_up(parse_windows(COFFEE_LAKE, found)[1]).has_int8_dot
    assert made_up(parse_windows("ARMv8 (64-bit) Family 8", ["ASIMD", "ASIMDDP"])[1]).has_int8_dot


@pytest.mark.parametrize("arch", ["x86_64", "arm64", "riscv64"])
def test_an_unknown_processor_is_given_the_benefit_of_the_doubt(arch: str) -> None:
    assert made_up(frozenset(), arch).has_int8_dot


def test_architectures_have_one_name() -> None:
    names = ["AMD64", "x86_64", "aarch64", "ARM64", "arm64", "riscv64"]
    assert [architecture(name) for name in names] == [
        "x86_64",
        "x86_64",
        "arm64",
        "arm64",
        "arm64",
        "riscv64",
    ]


def test_this_processor_is_known() -> None:
    found = processor()
    assert found is processor()
    assert found.name
    assert found.architecture == architecture(platform.machine())
    assert found.threads == usable_threads() >= 1
    assert found.cores >= 1


@pytest.mark.skipif(platform.system() != "Linux", reason="compares with /proc/cpuinfo")
def test_numpy_and_linux_agree_about_what_decides() -> None:
    from ayaedge.hardware.machine import _numpy_features

    deciding = {"avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "asimddp"}
    assert linux_names(_numpy_features()) & deciding == processor().features & deciding


def test_memory_is_counted_in_bytes() -> None:
    found = memory()
    assert 1 << 28 < found.available <= found.total < 1 << 50


@pytest.mark.parametrize("measure", [read_bandwidth, gemm_peak])
def test_a_measurement_is_quick_and_of_the_right_size(measure: object) -> None:
    assert callable(measure)
    begin = time.perf_counter()
    assert 1e8 < measure() < 1e15
    assert time.perf_counter() - begin < 30  # under a second where nothing else runs


def test_double_precision_can_be_measured_too() -> None:
    assert gemm_peak(np.float64) > 1e8


def test_only_one_module_asks_the_system_for_threads_and_memory() -> None:
    """What asks elsewhere gets the machine's, not those of the process."""
    asks = re.compile(
        r"cpu_count\(|sched_getaffinity\(|virtual_memory\(|SC_PHYS_PAGES|ThreadPoolExecutor\(\)"
    )
    found = {
        str(path.relative_to(ROOT))
        for folder in ("runtime", "export", "quant")
        for path in (ROOT / folder).rglob("*.py")
        if asks.search(path.read_text("utf-8"))
    }
    assert found == {str(Path("runtime", "ayaedge", "hardware", "machine.py"))}
