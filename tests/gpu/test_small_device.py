"""Memory of a device that runs out for real: llama.cpp's Vulkan backend on a software driver that is made small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ayaedge.hardware.probes import Probe
from ayaedge_export.synthetic.bundle import MODELS, write_random_bundle
from on_small_device import SmallDevice, load_and_answer, small_device

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
