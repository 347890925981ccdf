"""Memory of a device that runs out for real: llama.cpp's Vulkan backend on a software driver that is made small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ayaedge.hardware.probes import Probe
from ayaedge_export.synthetic.bundle import MODELS, write_random_bundle
from on_small_device import SmallDevice, hold, load_and_answer, load_and_wait, plan_and_load, small_device

__all__ = ["small_device"]
pytestmark = pytest.mark.gpu
SECONDS = 1800.0
MIB = 1 << 20
ALL = 5
"""Layers: four blocks and the output."""
NEAR = 2e-3
"""KL divergence of 4-bit weights to the processor, which rounds activations for them."""
SHORT, LONG = 8192, 65536
"""Tokens of context: 128 MiB and 1 GiB of KV cache."""


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of the 8B's width, with fewer words and a small tower."""
    model = MODELS["8b"].cut(4)
    vision = replace(
        model.vision, hidden_size=64, intermediate_size=96, num_layers=1, num_heads=4, adapter_size=128
    )
    text = replace(model.text, context_length=LONG, vocab_size=32768)
    return write_random_bundle(
        tmp_path_factory.mktemp("wide") / "bundle", "wide", replace(model, vision=vision, text=text),
        vision="int8", quant="q4_k_m", threads=None, seed=0, on_progress=None,
    )  # fmt: skip


@pytest.fixture(scope="session")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of a quarter of that width."""
    model = MODELS["8b"].cut(4)
    vision = replace(
        model.vision, hidden_size=64, intermediate_size=96, num_layers=1, num_heads=4, adapter_size=128
    )
    text = replace(
        model.text, context_length=LONG, vocab_size=8192, hidden_size=1024, intermediate_size=3584, num_heads=8,
        num_kv_heads=2,
    )  # fmt: skip
    return write_random_bundle(
        tmp_path_factory.mktemp("slim") / "bundle", "slim", replace(model, vision=vision, text=text),
        vision="int8", quant="q4_k_m", threads=None, seed=0, on_progress=None,
    )  # fmt: skip


def ask(child: Probe) -> dict[str, Any]:
    result = child.ask(SECONDS)
    assert result.death is None, result.said
    print(result.value)
    assert result.value["kl"] <= NEAR
    return dict(result.value)


def test_a_plan_is_what_the_device_gives_and_memory_that_runs_out_means_fewer_layers(
    wide: Path, small_device: SmallDevice
) -> None:
    small_device.set(2048 * MIB)
    every = {"gpu_layers": -1, "context_size": SHORT}
    choices = [every, {"gpu_layers": -1, "context_size": LONG}, {"context_size": LONG}]
    with Probe(load_and_answer, str(wide), choices) as child:
        whole = ask(child)
        assert (whole["layers"], whole["warned"], small_device.refused) == (ALL, [], 0)
        taken = sum(whole["sizes"][kind] for kind in ("model", "KV", "compute"))
        print(
            f"planned {whole['planned']:.1f} MiB, taken {taken:.1f}, of the device {small_device.peak / MIB:.1f}"
        )
        assert taken == pytest.approx(whole["planned"], rel=0.1)
        left = small_device.taken

        small_device.set(1024 * MIB)  # a context that does not fit: layers that were named are too many
        some = ask(child)
        assert some["layers"] < ALL
        assert len(some["warned"]) == 1
        assert small_device.refused
        assert small_device.taken == left

        small_device.set(1024 * MIB)  # chosen by the plan, nothing is too much
        planned = ask(child)
        assert planned["asked"] == planned["layers"] > 0
        assert (planned["warned"], small_device.refused) == ([], 0)


def loaded(directory: Path, choices: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each choice with the MiB that were planned and taken; all layers that it names are there."""
    with Probe(plan_and_load, str(directory), choices) as child:
        for choice in choices:
            result = child.ask(SECONDS)
            assert result.death is None, result.said
            print(f"{choice}: planned {result.value['planned']:.1f} MiB, taken {result.value['taken']:.1f}")
            assert result.value["layers"] == choice["gpu_layers"]
            yield choice, result.value


def test_a_plan_of_any_part_is_what_llama_cpp_takes_and_never_less(wide: Path) -> None:
    parts: list[dict[str, Any]] = [{"gpu_layers": layers} for layers in (ALL, 3, 2, 1)]
    parts.append({"gpu_layers": 0, "offload_prompts": True})
    sizes = ((SHORT, 256), (SHORT, 512), (LONG // 2, 256), (LONG, 256))
    choices = [{"context_size": size, "ubatch_size": rows, **part} for size, rows in sizes for part in parts]
    for _, found in loaded(wide, choices):
        assert 0.9 * found["planned"] <= found["taken"] <= found["planned"]


SCORES = 128 * MIB
"""Bytes that a buffer of this driver may have: with more scores attention is left to the processor."""
TOO_MUCH = {ALL: 1.02, 3: 1.05, 2: 1.09, 1: 1.15, 0: 1.3}
"""Of what is taken, by layers, without flash attention: the less there is, the more weigh pieces that are not used."""


@pytest.mark.parametrize("bundle", ["wide", "slim"])
def test_a_plan_without_flash_attention_is_never_less_than_what_llama_cpp_takes(
    bundle: str, request: pytest.FixtureRequest
) -> None:
    directory, heads = request.getfixturevalue(bundle), {"wide": 32, "slim": 8}[bundle]
    parts: list[dict[str, Any]] = [{"gpu_layers": layers} for layers in (ALL, 3, 2, 1)]
    parts.append({"gpu_layers": 0, "offload_prompts": True})
    sizes = ((1024, 256), (1024, 512), (4096, 256), (SHORT, 64), (SHORT, 128), (4 * SHORT, 64))
    choices = [
        {"context_size": size, "ubatch_size": rows, "flash_attention": False, **part}
        for size, rows in sizes
        for part in parts
        if 4 * heads * size * rows <= SCORES
    ]
    for choice, found in loaded(directory, choices):
        most = TOO_MUCH[choice["gpu_layers"]] + (0.15 if bundle == "slim" else 0)
        assert found["taken"] <= found["planned"] <= most * found["taken"]


def test_a_device_that_has_no_room_to_work_in_never_ends_the_process(
    slim: Path, small_device: SmallDevice
) -> None:
    small_device.set(2048 * MIB)
    every = {"gpu_layers": -1, "context_size": SHORT}
    with Probe(load_and_answer, str(slim), [every] * 3) as child:
        whole = ask(child)
        assert (whole["layers"], whole["warned"]) == (ALL, [])
        assert whole["used"] > whole["loaded"], "llama.cpp takes something with its first batch"
        left = small_device.taken

        # weights, KV cache and compute buffer fit, and nothing beside them
        small_device.set(round(whole["loaded"] * MIB))
        tight = ask(child)
        assert tight["layers"] < ALL
        assert len(tight["warned"]) == 1
        assert small_device.taken == left

        small_device.set(2048 * MIB)
        assert ask(child)["layers"] == ALL


def test_room_that_another_program_took_after_loading_is_an_error_and_room_again_an_answer(
    slim: Path, small_device: SmallDevice
) -> None:
    small_device.set(2048 * MIB)
    with Probe(load_and_wait, str(slim), {"gpu_layers": -1, "context_size": SHORT}) as child:
        assert child.ask(SECONDS).value == {"layers": ALL, "warned": []}
        with Probe(hold, 2048 * MIB - small_device.taken - MIB // 2) as other:
            assert other.ask(SECONDS).death is None
            refused = child.ask(SECONDS)
            assert refused.death is None, refused.said
            assert "graphics memory are left" in refused.value["fault"]
            assert other.ask(SECONDS).value == 0
        found = child.ask(SECONDS)
        assert found.death is None, found.said
        assert (found.value["fault"], found.value["kl"] <= NEAR) == ("", True)


def test_another_program_that_came_first_means_fewer_layers(slim: Path, small_device: SmallDevice) -> None:
    small_device.set(2048 * MIB)
    every, planned = ({"gpu_layers": layers, "context_size": SHORT} for layers in (-1, None))
    with Probe(load_and_answer, str(slim), [every, every, planned, every]) as child:
        whole = ask(child)
        left = small_device.taken
        size = round((2048 - whole["used"] / 2) * MIB)
        with Probe(hold, 1000 * MIB) as first, Probe(hold, size - 1000 * MIB) as second:
            assert [other.ask(SECONDS).death for other in (first, second)] == [None, None]
            beside = ask(child)
            assert beside["layers"] < ALL
            assert len(beside["warned"]) == 1
            by_plan = ask(child)  # sees what is free, and leaves some for others
            assert by_plan["asked"] == by_plan["layers"] < ALL
            assert by_plan["warned"] == []
            assert [other.ask(SECONDS).value for other in (first, second)] == [0, 0]
        again = ask(child)
        assert (again["layers"], again["warned"]) == (ALL, [])
    assert small_device.taken == left
