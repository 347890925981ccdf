"""transformers measured with the small checkpoint's shape; its true shapes are only counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ayaedge.hardware.machine import Memory
from ayaedge_export.checkpoint.config import ModelConfig, parse_config
from ayaedge_export.synthetic import transformers_speed
from ayaedge_export.synthetic.bundle import MODELS
from ayaedge_export.synthetic.transformers_speed import Precision, build_model, count_parameters, measure


@pytest.fixture(scope="module")
def small(tiny: Path) -> ModelConfig:
    return parse_config(json.loads((tiny / "config.json").read_text("utf-8")), [])


@pytest.mark.parametrize(("shape", "parameters"), [("8b", 8_631_842_032), ("32b", 33_137_288_432)])
def test_true_shapes_have_the_released_number_of_parameters(shape: str, parameters: int) -> None:
    model = MODELS[shape]  # type: ignore[index]
    assert count_parameters(model.vision, model.text) == parameters
    assert count_parameters(model.vision, model.cut(2).text) < parameters / 3


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_a_small_shape_is_measured(small: ModelConfig, precision: Precision) -> None:
    speed = measure(small.vision, small.text, precision, threads=1, tiles=2, prompt_tokens=40, text_tokens=16)
    assert speed.precision == precision
    assert (speed.prompt_tokens, speed.prefill_tokens, speed.tiles) == (40, 16, 2)
    assert [part.context for part in speed.decode] == [16, 40]
    for value in (
        speed.tile_seconds,
        speed.prefill,
        speed.first_token_seconds,
        speed.decode[0].tokens_per_second,
    ):
        assert value is not None
        assert value > 0


def test_drawn_weights_are_tied_finite_and_of_one_type(small: ModelConfig) -> None:
    import torch

    model = build_model(small.vision, small.text, "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with torch.inference_mode():
        logits = model(input_ids=torch.arange(8)[None]).logits.float()
    assert bool(logits.isfinite().all())
    assert 0.01 < float(logits.std()) < 100
    assert torch.get_default_dtype() == torch.float32


def test_too_little_memory_is_told_and_nothing_is_made_up(
    small: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_speed, "memory", lambda: Memory(2_000_000_000, 1_000_000_000))
    speed = measure(small.vision, small.text, "fp32")
    assert (speed.tile_seconds, speed.prefill, speed.first_token_seconds, speed.decode) == (
        None,
        None,
        None,
        (),
    )
    assert speed.needed_bytes > speed.available_bytes == 1_000_000_000
