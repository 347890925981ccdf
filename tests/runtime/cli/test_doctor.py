"""The doctor's report, from made-up computers and from this one."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from ayaedge.cli.doctor import Cache, Facts, Speed, doctor, find_missing, report
from ayaedge.decoder.kernel_trial import Verdict
from ayaedge.hardware.devices import Gpu
from ayaedge.hardware.machine import Memory, Processor
from ayaedge.hardware.vision_devices import BUILT_IN, CPU_PROVIDER, PLUGGED_IN, VisionDevice

LAPTOP = Facts(
    system="Linux",
    processor=Processor("Made Up 7", "x86_64", 8, 16, frozenset({"avx2", "avx_vnni"})),
    memory=Memory(16_000_000_000, 9_000_000_000),
    decoder_gpus=[],
    decoder_backends=["cpu"],
    vision_providers=[CPU_PROVIDER],
    vision_devices=[],
    llama_build="CPU : AVX2 = 1",
    versions={"ayaedge": "0.1.0", "python": "3.13.0"},
    telemetry=False,
    cache=Cache("/home/someone/.cache/ayaedge", 3, 900_000_000),
    speed=Speed(51.2e9, 640e9),
)
MAC = replace(
    LAPTOP,
    system="Darwin",
    processor=Processor("Apple M2", "arm64", 8, 8, frozenset({"asimddp", "i8mm", "bf16"})),
    decoder_backends=["metal", "cpu"],
    decoder_gpus=[Gpu("MTL0", "Apple M2", "metal", 12_000_000_000, 11_000_000_000)],
    vision_providers=[BUILT_IN["coreml"], CPU_PROVIDER],
)
WINDOWS = replace(LAPTOP, system="Windows")
app = typer.Typer()
app.command()(doctor)


def shown(facts: Facts) -> str:
    stream = StringIO()
    Console(file=stream, width=150).print(report(facts))
    return stream.getvalue()


def test_the_report_says_whether_anything_may_have_been_sent() -> None:
    assert "off (ONNX Runtime's" in shown(LAPTOP)
    assert "ORT_DISABLE_TELEMETRY=1" in shown(replace(LAPTOP, telemetry=True))


def missing(facts: Facts) -> list[tuple[str, str]]:
    return [(found.half, found.device) for found in find_missing(facts)]


def test_the_report_names_what_decides_about_speed() -> None:
    text = shown(LAPTOP)
    for part in (
        "Made Up 7, x86_64", "8, 16 threads for this process", "AVX2 yes, AVX-512 no, VNNI yes, AMX no, bf16 no",
        "16.00 GB",
        "51.2 GB/s", "640 GFLOP/s", "no GPU", CPU_PROVIDER, "AVX2 = 1", "python 3.13.0", "3 files, 900.0 MB",
    ):  # fmt: skip
        assert part in text


def test_gpus_are_shown_with_their_memory() -> None:
    assert "MTL0: Apple M2, 11.00 GB of 12.00 GB free" in shown(MAC)
    assert "dotprod yes, i8mm yes, bf16 yes, fp16 no, SVE no, SME no" in shown(MAC)
    shared = Gpu("Vulkan0", "Radeon 780M", "vulkan", 8_000_000_000, 7_000_000_000, integrated=True)
    assert "7.00 GB of 8.00 GB free, main memory" in shown(replace(LAPTOP, decoder_gpus=[shared]))


def test_the_towers_devices_are_shown_by_the_names_that_choose_them() -> None:
    devices = [
        VisionDevice("webgpu", 0, "Radeon 780M", integrated=True),
        VisionDevice("webgpu", 1, "Arc A370M"),
    ]
    text = shown(replace(LAPTOP, vision_providers=[PLUGGED_IN["webgpu"]], vision_devices=devices))
    assert "webgpu:0: Radeon 780M, main memory" in text
    assert "webgpu:1: Arc A370M" in text


def test_what_is_prebuilt_is_advised_before_what_must_be_built() -> None:
    vulkan = next(found for found in find_missing(LAPTOP) if found.device == "vulkan")
    assert vulkan.prebuilt and "--extra-index-url" in vulkan.prebuilt
    assert "CMAKE_ARGS" in vulkan.command


def test_a_system_that_does_not_tell_is_not_guessed() -> None:
    silent = replace(LAPTOP, processor=Processor("unknown", "x86_64", 4, 4, frozenset()))
    assert "the system does not tell" in shown(silent)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (LAPTOP, {"decoder": ["cuda", "vulkan"], "vision": ["cuda", "webgpu", "openvino"]}),
        (WINDOWS, {"decoder": ["cuda", "vulkan"], "vision": ["cuda", "webgpu", "openvino"]}),
        (MAC, {"decoder": [], "vision": ["webgpu"]}),
        (
            replace(MAC, decoder_backends=["cpu"], vision_providers=[CPU_PROVIDER]),
            {"decoder": ["metal"], "vision": ["coreml", "webgpu"]},
        ),
        (replace(MAC, system="Linux"), {"decoder": ["cuda", "vulkan"], "vision": ["webgpu"]}),
    ],
    ids=["linux", "windows", "mac", "bare-mac", "linux-on-arm"],
)
def test_only_what_makes_sense_on_the_system_is_advised(facts: Facts, expected: dict[str, list[str]]) -> None:
    found = [(half, device) for half, devices in expected.items() for device in devices]
    assert missing(facts) == found


def test_what_is_there_is_not_advised() -> None:
    complete = replace(
        LAPTOP, decoder_backends=["cuda", "cpu"], vision_providers=[BUILT_IN["cuda"], CPU_PROVIDER]
    )
    assert missing(complete) == [("decoder", "vulkan"), ("vision", "webgpu"), ("vision", "openvino")]


def test_wheels_are_advised_where_their_author_builds_them() -> None:
    def wheels(facts: Facts) -> list[str | None]:
        return [found.prebuilt for found in find_missing(facts) if found.half == "decoder"]

    for facts in LAPTOP, WINDOWS:
        for found, kind in zip(wheels(facts), ("cu124", "vulkan"), strict=True):
            assert found is not None
            assert f"/whl/{kind} " in found
    bare = replace(MAC, decoder_backends=["cpu"])
    assert "/whl/metal " in (wheels(bare)[0] or "")
    assert wheels(replace(MAC, system="Linux")) == [None, None]


def test_json_is_one_object_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "ayaedge"
    (kept / "vision").mkdir(parents=True)
    (kept / "vision" / "a").write_bytes(b"12345")
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path))
    result = CliRunner().invoke(app, ["--json"])
    assert result.exit_code == 0
    data = json.loads(result.stdout)
    assert set(data) == {*Facts.__dataclass_fields__, "missing"}
    assert data["processor"]["features"] == sorted(data["processor"]["features"])
    assert data["cache"] == {"directory": str(kept), "files": 1, "bytes": 5}
    assert data["speed"]["memory_bytes_per_second"] > 1e8
    assert {"ayaedge", "onnxruntime", "llama-cpp-python", "numpy", "pillow", "python"} == set(
        data["versions"]
    )


def test_people_get_a_table_and_commands_that_can_be_copied() -> None:
    result = CliRunner().invoke(app, [])
    assert result.exit_code == 0
    assert "llama.cpp sees" in result.stdout
    for line in result.stdout.splitlines():
        if "pip install" in line:
            assert line.startswith("  ")
            assert "│" not in line


def test_the_report_says_what_our_kernels_would_gain() -> None:
    def said(verdict: Verdict) -> str:
        return shown(replace(LAPTOP, acceleration=verdict))

    assert "avx-vnni, 1.8 times as fast as llama.cpp's" in said(Verdict("avx-vnni", 1.84))
    assert "not worth it" not in said(Verdict("avx-vnni", 1.84))
    assert "of a prefill, 2.8 times as its attention" in said(Verdict("avx-vnni", 1.84, 2.81))
    assert "not worth it: avx-vnni, 1.0 times" in said(Verdict("avx-vnni", 1.04))
    assert "none: avx-vnni does not work here: SIGILL" in said(Verdict("avx-vnni", reason="SIGILL"))
    assert "none: it was not built" in said(Verdict(None, reason="it was not built"))
    better = Verdict("amx-bf16", reason="SIGILL")
    beside = said(Verdict("avx-vnni", 1.84, passed_over=(better,)))
    assert "products of a prefill; amx-bf16 does not work here: SIGILL" in beside
