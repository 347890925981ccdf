"""A checkpoint may bring code of its own: nothing of it is run, and nobody is asked whether it shall be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ayaedge import CheckpointError
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.text.prompt import Message
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.evaluation.reference import Reference
from ayaedge_export.evaluation.verify import verify_bundle
from ayaedge_export.exporter import export_checkpoint

CODE = """
from pathlib import Path
Path({marker!r}).write_text("it ran")
from transformers import *
class Foreign: ...
def generate(*_, **__): raise AssertionError("it ran")
"""
NAMES = {
    "config.json": ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM"),
    "tokenizer_config.json": ("AutoTokenizer", "AutoProcessor"),
    "processor_config.json": ("AutoProcessor", "AutoImageProcessor"),
    "preprocessor_config.json": ("AutoImageProcessor", "AutoProcessor", "AutoFeatureExtractor"),
}


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


@pytest.fixture
def armed(tiny: Path, tmp_path: Path, marker: Path) -> Path:
    """The trained checkpoint, whose files name code that lies next to them wherever transformers looks for some."""
    checkpoint = shutil.copytree(tiny, tmp_path / "c")
    (checkpoint / "custom_generate").mkdir()
    for place in ("foreign.py", "custom_generate/generate.py"):
        (checkpoint / place).write_text(CODE.format(marker=str(marker)))
    for name, classes in NAMES.items():
        values: dict[str, Any] = json.loads((checkpoint / name).read_text("utf-8"))
        # transformers wants a slow and a fast tokenizer
        named = dict.fromkeys(classes, "foreign.Foreign")
        values["auto_map"] = {
            **named,
            **({"AutoTokenizer": [None, "foreign.Foreign"]} if "tok" in name else {}),
        }
        if name == "config.json":
            for part in ("text_config", "vision_config"):
                values[part]["auto_map"] = named
        else:
            values["processor_class"] = "Foreign"
        if name == "preprocessor_config.json":
            values["image_processor_type"] = "Foreign"
        if name == "tokenizer_config.json":
            values["tokenizer_class"] = "Foreign"
        (checkpoint / name).write_text(json.dumps(values), "utf-8")
    return checkpoint


def test_the_reference_runs_no_code_of_a_checkpoint(armed: Path, reference: Reference) -> None:
    found = Reference(armed)
    message = [Message("user", "What?")]
    ids, _ = found.inputs(message, [])
    assert ids == reference.inputs(message, [])[0]
    assert found.generate(ids, None, max_tokens=3) == reference.generate(ids, None, max_tokens=3)


@pytest.mark.slow
def test_verification_answers_as_for_a_checkpoint_without_code(
    armed: Path, exact_bundle: Bundle, tmp_path: Path
) -> None:
    copy = read_bundle(shutil.copytree(exact_bundle.directory, tmp_path / "b"))
    assert verify_bundle(copy, armed, trace=True).passed


@pytest.mark.slow
def test_a_traced_export_runs_no_code_of_a_checkpoint(armed: Path, tmp_path: Path) -> None:
    assert export_checkpoint(armed, tmp_path / "b", trace=True).manifest.formats.vision == "fp32"


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["pytorch_model-00001-of-00002.bin"]])
def test_a_checkpoint_of_pickles_alone_is_refused(tiny: Path, tmp_path: Path, names: list[str]) -> None:
    checkpoint = shutil.copytree(tiny, tmp_path / "c")
    (checkpoint / "model.safetensors").unlink()
    for name in names:
        (checkpoint / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(
        CheckpointError, match=f"{names[0]} is a pickle, which can run code and is never opened"
    ):
        open_checkpoint(checkpoint)
