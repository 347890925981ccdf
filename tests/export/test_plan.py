from __future__ import annotations

import io
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console

from ayaedge import InvalidOptionError
from ayaedge_export import plan
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint import config
from ayaedge_export.checkpoint.config import ModelConfig, parse_config
from ayaedge_export.decoder.gguf_writer import plan_tensors
from ayaedge_export.effort import Budget, Effort, GptqOptions
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.plan import (
    VISION_FORMATS,
    VisionFormat,
    make_recipe,
    plan_export,
    plan_table,
    plan_vision,
)
from ayaedge_quant.recipes import DecoderFormat
from random_checkpoint import Shape, write_random_checkpoint


def released_config(released_files: Path, model: str) -> ModelConfig:
    text = (released_files / model / "config.json").read_text("utf-8")
    return parse_config(json.loads(text), [])


@pytest.mark.parametrize(("model", "bytes_wanted"), [("aya-vision-8b", 5.046e9), ("aya-vision-32b", 19.79e9)])
def test_the_released_decoders_get_their_published_size(
    released_files: Path, model: str, bytes_wanted: float
) -> None:
    config = released_config(released_files, model)
    plan = plan_tensors(config.text, "q4_k_m")
    assert sum(tensor.nbytes for tensor in plan) == pytest.approx(bytes_wanted, rel=0.01)
    assert sum(tensor.kind.name == "Q6_K" for tensor in plan) == 1 + config.text.num_layers  # head, v, down


def test_the_released_vision_tower_gets_its_size(released_files: Path) -> None:
    plan = plan_vision(released_config(released_files, "aya-vision-8b").vision, "int8")
    assert sum(weight.weights for weight in plan) == pytest.approx(604e6, rel=0.01)
    assert sum(weight.nbytes for weight in plan) == pytest.approx(618e6, rel=0.01)


@pytest.mark.parametrize("quant", ["q4_k_m", "f16"])
def test_the_decoders_file_is_as_planned(tiny: Path, tmp_path: Path, quant: DecoderFormat) -> None:
    plan = plan_export(tiny, quant=quant, vision="fp16")
    bundle = export_checkpoint(tiny, tmp_path / "b", quant=quant, vision="fp16")
    written = {
        t.name: (t.tensor_type.name, int(t.n_bytes)) for t in gguf.GGUFReader(bundle.decoder_path).tensors
    }
    assert {w.name: (w.type, w.nbytes) for w in plan.weights if w.part == "decoder"} == written
    assert plan.disk_bytes == pytest.approx(bundle.size, rel=0.02)


@pytest.mark.parametrize("vision", VISION_FORMATS)
def test_the_vision_graph_is_as_planned(tiny: Path, tmp_path: Path, vision: VisionFormat) -> None:
    plan = plan_export(tiny, vision=vision)
    bundle = export_checkpoint(tiny, tmp_path / "b", vision=vision)
    stored: Counter[str] = Counter()
    for tensor in onnx.load(bundle.vision_path).graph.initializer:
        whole = re.sub(r"(?<=\.fc[12])\.\d+(?=\.)", "", tensor.name)  # of the groups of an MLP
        stored[whole] += numpy_helper.to_array(tensor).nbytes
    for weight in plan.weights:
        if weight.part == "vision":
            scale = stored[weight.name.removesuffix("weight") + "scale"] if "INT8" in weight.type else 0
            assert stored[weight.name] + scale == weight.nbytes, weight
    total = plan.part("vision").nbytes
    assert total <= bundle.vision_path.stat().st_size <= 1.15 * total
    assert plan.disk_bytes == pytest.approx(bundle.size, rel=0.02)


@pytest.mark.parametrize("effort", ["fast", "best"])
def test_names_shapes_and_types_are_decided_once_in_an_export(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, effort: Effort
) -> None:
    asked: Counter[str] = Counter()

    def counted(module: ModuleType, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: asked.update([name]) or function(*given))

    for name in ("text_tensors", "vision_tensors"):
        counted(config, name)
    for name in ("plan_tensors", "header_bytes"):
        counted(plan, name)
    checkpoint = write_random_checkpoint(tmp_path / "c", tiny, Shape())
    asked.clear()
    options: dict[str, Any] = {}
    if effort == "best":
        text = CalibrationText("short", {"en": BUILTIN.passages["en"][:2]})
        options = {"budget": Budget(nbytes=10**6), "calibrate": text, "gptq": GptqOptions(tokens=200)}
    export_checkpoint(checkpoint, tmp_path / "b", effort=effort, **options)
    assert set(asked.values()) == {1}
    assert len(asked) == (4 if effort == "best" else 3)


@pytest.mark.parametrize(("saturates", "expected"), [(False, "int8"), (True, "int8-block")])
def test_the_vision_format_is_by_default_what_the_processor_multiplies_exactly(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    saturates: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(plan, "processor", lambda: SimpleNamespace(saturates=saturates))
    assert plan_export(tiny).vision == expected
    assert ("cannot multiply bytes without saturating" in caplog.text) == saturates
    assert plan_export(tiny, vision="fp16").vision == "fp16"
    assert plan_export(tiny, trace=True).vision == "fp32"


def test_groups_add_up_to_the_whole(tiny: Path) -> None:
    plan = plan_export(tiny)
    assert sum(group.nbytes for group in plan.groups()) == sum(weight.nbytes for weight in plan.weights)
    assert sum(group.count for group in plan.groups()) == len(plan.weights)
    assert len({(group.part, group.kind, group.type) for group in plan.groups()}) == len(plan.groups())
    assert plan.part("decoder").bits == pytest.approx(5.0, abs=0.2)


def test_overrides_change_what_they_name(tiny: Path) -> None:
    before = {weight.name: weight for weight in plan_export(tiny).weights}
    plan = plan_export(tiny, quant=make_recipe("q4_k_m", [r"blk\.[01]\.ffn_down=q8_0"], "f16"))
    changed = {weight.name: weight.type for weight in plan.weights if weight != before[weight.name]}
    assert changed == {
        "token_embd.weight": "F16",
        "blk.0.ffn_down.weight": "Q8_0",
        "blk.1.ffn_down.weight": "Q8_0",
    }
    assert plan.recipe.adjustments == (r"blk\.[01]\.ffn_down=q8_0", "output=f16")


@pytest.mark.parametrize(
    ("overrides", "output", "says"),
    [
        (["ffn=q9"], None, "'q9' is not a tensor type"),
        (["ffn_[=q8_0"], None, "not a regular expression"),
        (["nothing=q8_0"], None, "no tensor matches 'nothing'"),
        ([], "int4", "'int4' is not a tensor type"),
    ],
)
def test_an_override_that_cannot_be_followed_says_why(
    tiny: Path, overrides: list[str], output: str | None, says: str
) -> None:
    with pytest.raises(InvalidOptionError) as caught:
        plan_export(tiny, quant=make_recipe("q4_k_m", overrides, output))
    assert says in str(caught.value)


def test_a_plan_is_json_and_a_table(tiny: Path, tmp_path: Path) -> None:
    plan = plan_export(tiny, tmp_path / "not" / "there" / "yet")
    data = json.loads(json.dumps(plan.to_dict()))
    assert data["disk_bytes"] == plan.disk_bytes
    assert data["free_bytes"] > 0
    assert data["totals"]["decoder"]["weights"] == sum(
        w["bytes"] * 8 / w["bits_per_weight"] for w in data["tensors"] if w["part"] == "decoder"
    )
    text = io.StringIO()
    Console(file=text, width=120).print(plan_table(plan))
    for part in ("ffn_down", "Q6_K", "INT8 in blocks of 32", "disk needed", "disk free"):
        assert part in text.getvalue()
