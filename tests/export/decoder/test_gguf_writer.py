from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

import stock_llama
from ayaedge import AyaVision, CheckpointError
from ayaedge.bundle import Bundle
from ayaedge.hardware.probes import probe
from ayaedge.text.prompt import Message
from ayaedge_export.calibration.sequences import checkpoint_vocabulary
from ayaedge_export.checkpoint.checkpoint import open_checkpoint
from ayaedge_export.decoder.gguf_writer import write_decoder
from ayaedge_export.exporter import export_checkpoint
from ayaedge_export.plan import plan_export
from ayaedge_quant.recipes import DECODER_FORMATS, DecoderFormat, Recipe
from random_checkpoint import Shape, write_random_checkpoint
from stock_quantizer import stock_quantize, tensors_of

# widths that fill K-quant blocks, and widths that force llama.cpp's fallbacks
WIDTHS = {
    "blocks of 256": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 9},
    "blocks of 32": {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 5},
    "no blocks": {"hidden_size": 96, "intermediate_size": 100, "num_hidden_layers": 3},
}


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("text_type", ["cohere2", "cohere"])
def test_every_tensor_equals_llama_cpps_own_quantizer(
    tiny: Path, tmp_path: Path, text_type: str, widths: str
) -> None:
    shape = Shape(text_type=text_type, text=WIDTHS[widths], dtype="float16")
    checkpoint = open_checkpoint(write_random_checkpoint(tmp_path / "c", tiny, shape))
    write_decoder(plan_export(checkpoint, quant="f32"), tmp_path / "f32.gguf")
    formats: tuple[DecoderFormat, ...] = ("q4_k_m", "q5_k_m", "q6_k", "q8_0")
    for fmt in formats:
        write_decoder(plan_export(checkpoint, quant=fmt), tmp_path / "ours.gguf", threads=3)
        stock_quantize(tmp_path / "f32.gguf", tmp_path / "stock.gguf", fmt)
        ours, stock = tensors_of(tmp_path / "ours.gguf"), tensors_of(tmp_path / "stock.gguf")
        assert ours.keys() == stock.keys()
        for name in ours:
            assert ours[name] == stock[name], (fmt, name)


def test_overridden_types_equal_llama_cpps_own(tiny: Path, tmp_path: Path) -> None:
    shape = Shape(text=WIDTHS["blocks of 256"], dtype="float16")
    checkpoint = open_checkpoint(write_random_checkpoint(tmp_path / "c", tiny, shape))
    write_decoder(plan_export(checkpoint, quant="f32"), tmp_path / "f32.gguf")
    overrides = {
        r"blk\.[13]\.ffn_down": "q8_0",
        "attn_(q|k)": "q5_k",
        "ffn_down": "q6_k",
        "token_embd": "q4_k",
    }
    recipe = Recipe.parse("q4_k_m", [f"{pattern}={kind}" for pattern, kind in overrides.items()])
    write_decoder(plan_export(checkpoint, quant=recipe), tmp_path / "ours.gguf")
    stock_quantize(tmp_path / "f32.gguf", tmp_path / "stock.gguf", "q4_k_m", overrides=overrides)
    assert tensors_of(tmp_path / "ours.gguf") == tensors_of(tmp_path / "stock.gguf")
    assert tensors_of(tmp_path / "ours.gguf")["blk.1.ffn_down.weight"][0] == "Q8_0"


def test_the_number_of_threads_does_not_change_a_byte(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    for threads in (1, 2, 5):
        write_decoder(plan_export(checkpoint, quant="q4_k_m"), tmp_path / f"{threads}.gguf", threads=threads)
    assert len({(tmp_path / f"{threads}.gguf").read_bytes() for threads in (1, 2, 5)}) == 1


def test_progress_covers_every_byte_of_the_decoder(tiny: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    seen: list[int] = []
    plan = plan_export(checkpoint, quant="f16")
    write_decoder(plan, tmp_path / "d.gguf", advance=lambda count, _: seen.append(count))
    assert sum(seen) == sum(checkpoint.tensors.entries[tensor.source].nbytes for tensor in plan.tensors)


@pytest.mark.parametrize("fmt", DECODER_FORMATS)
def test_stock_llama_cpp_loads_every_format_and_talks(tiny: Path, tmp_path: Path, fmt: DecoderFormat) -> None:
    bundle = export_checkpoint(tiny, tmp_path / "b", quant=fmt, vision="fp16")
    found = probe(stock_llama.chat, str(bundle.decoder_path), "Hello", seconds=120)
    assert found.death is None, found.said
    assert found.value["tokens"] >= 1
    assert found.value["metadata"]["tokenizer.chat_template"] == bundle.manifest.chat_template
    assert found.value["metadata"]["tokenizer.ggml.pre"] == "command-r"


def test_stock_llama_cpp_says_what_we_say(exact_bundle: Bundle) -> None:
    with AyaVision.load(exact_bundle.directory) as model:
        ours = model.ask("Hello", max_tokens=8)
        prompt = model._engine.prompts.build([Message("user", "Hello")], [])
    stock = probe(
        stock_llama.continued, str(exact_bundle.decoder_path), list(prompt.ids), len(ours.ids), seconds=120
    )
    assert stock.death is None, stock.said
    assert tuple(stock.value) == ours.ids


def test_added_tokens_are_control_and_padding_is_unused(exact_bundle: Bundle) -> None:
    reader = gguf.GGUFReader(exact_bundle.decoder_path)
    kinds = reader.fields["tokenizer.ggml.token_type"]
    types = np.array([kinds.parts[i][0] for i in kinds.data])
    manifest = exact_bundle.manifest
    assert set(np.flatnonzero(types == gguf.TokenType.CONTROL)) == set(manifest.tokens.special.values())
    padding = set(np.flatnonzero(types == gguf.TokenType.UNUSED))
    known = set(range(max(manifest.tokens.special.values()) + 1))
    assert padding == set(range(manifest.decoder.vocab_size)) - known


def test_a_token_that_is_named_as_padding_would_be_keeps_its_name(tiny: Path) -> None:
    checkpoint = open_checkpoint(tiny)
    tokenizer, rows = checkpoint.tokenizer, checkpoint.config.text.vocab_size
    padding, last = tokenizer.token_list(rows).index(None), list(tokenizer.vocab)[-1]
    name = f"[PAD{padding}]"
    vocab = {name if token == last else token: index for token, index in tokenizer.vocab.items()}
    with checkpoint_vocabulary(replace(checkpoint, tokenizer=replace(tokenizer, vocab=vocab))) as vocabulary:
        assert vocabulary.text(vocab[name]) == name
        assert vocabulary.text(padding) == f"[{name}]"
        assert vocabulary.text(padding + 1) == f"[PAD{padding + 1}]"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_are_not_finite_are_counted_before_anything_is_written(
    tiny: Path, tmp_path: Path, dtype: str
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = write_random_checkpoint(tmp_path / "c", tiny, Shape(dtype=dtype))
    tensors = load_file(path / "model.safetensors")
    spoilt = "language_model.model.layers.3.mlp.up_proj.weight"
    tensors[spoilt][5, 7:9] = torch.nan
    tensors[spoilt][6, 0] = -torch.inf
    tensors["multi_modal_projector.linear_1.bias"][2] = torch.inf
    tensors["vision_tower.vision_model.post_layernorm.bias"][0] = torch.finfo(tensors[spoilt].dtype).max
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(path, tmp_path / "b")
    message = str(caught.value)
    assert "has 2 faults" in message
    assert f"{spoilt} in model.safetensors: 3 of 6,144 values are NaN or infinite" in message
    assert "linear_1.bias in model.safetensors: 1 of 96 values" in message
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
