"""Random checkpoints of any shape, written by transformers, for tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ayaedge_export.checkpoint.config import parse_config
from ayaedge_export.checkpoint.spec import text_tensors, vision_tensors

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json",
    "chat_template.jinja", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What differs between random checkpoints."""

    text_type: str = "cohere2"
    vision: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    downsample: int = 2
    adapter_size: int = 96
    dtype: str = "float32"
    shard_size: str = "1GB"
    seed: int = 0


def write_random_checkpoint(target: Path, tokenizer_from: Path, shape: Shape) -> Path:
    """A checkpoint with random weights of `shape`, with the tokenizer of another checkpoint."""
    import torch
    from transformers import (
        AyaVisionConfig,
        AyaVisionForConditionalGeneration,
        Cohere2Config,
        CohereConfig,
        SiglipVisionConfig,
    )

    given = json.loads((tokenizer_from / "config.json").read_text("utf-8"))
    vision = SiglipVisionConfig(
        **{
            "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": 56, "patch_size": 7, "vision_use_head": False, **(shape.vision or {}),
        }
    )  # fmt: skip
    text_class = {"cohere2": Cohere2Config, "cohere": CohereConfig}[shape.text_type]
    window = {"sliding_window": 48} if shape.text_type == "cohere2" else {}
    text = text_class(
        **{
            "vocab_size": given["text_config"]["vocab_size"], "hidden_size": 64, "intermediate_size": 96,
            "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 75000.0,
            "max_position_embeddings": 1024, "logit_scale": 0.125, "eos_token_id": given["text_config"]["eos_token_id"],
            "initializer_range": 0.2, **window, **(shape.text or {}),
        }
    )  # fmt: skip
    config = AyaVisionConfig(
        vision_config=vision, text_config=text, image_token_index=given["image_token_index"],
        downsample_factor=shape.downsample, alignment_intermediate_size=shape.adapter_size,
        adapter_layer_norm_eps=1e-6, tie_word_embeddings=True, vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(shape.seed)
    model = AyaVisionForConditionalGeneration(config)
    for (
        name,
        parameter,
    ) in model.named_parameters():  # norms and biases start as ones and zeros: hide nothing there
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.3)
    model.to(getattr(torch, shape.dtype)).save_pretrained(target, max_shard_size=shape.shard_size)
    _copy_tokenizer(tokenizer_from, target, vision.image_size, vision.patch_size * shape.downsample)
    return target


def _copy_tokenizer(source: Path, target: Path, image_size: int, token_side: int) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    image = target / "preprocessor_config.json"
    image.write_text(
        json.dumps({**json.loads(image.read_text()), "size": {"height": image_size, "width": image_size}})
    )
    processor = target / "processor_config.json"
    processor.write_text(
        json.dumps({**json.loads(processor.read_text()), "img_size": image_size, "patch_size": token_side})
    )


def rename_tensors(directory: Path, prefix: str) -> None:
    """Put `prefix` before every tensor's name in an unsharded checkpoint."""
    path = directory / "model.safetensors"
    tensors = {prefix + name: value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def write_shrunk_release(target: Path, released: Path) -> Path:
    """A released checkpoint's configuration, template and tokenizer, around tiny random weights.

    Only widths and depths shrink; vocabulary, tiling, image size, token ids and RoPE stay as released.
    """
    config = json.loads((released / "config.json").read_text("utf-8"))
    config["text_config"] |= {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }  # fmt: skip
    config["vision_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config["alignment_intermediate_size"] = 32
    target.mkdir(parents=True)
    (target / "config.json").write_text(json.dumps(config))
    for name in TOKENIZER_FILES:
        if (released / name).is_file():
            shutil.copy(released / name, target / name)
    parsed = parse_config(config, [])
    rng = np.random.default_rng(0)
    shapes = {**text_tensors(parsed.text), **vision_tensors(parsed.vision)}
    save_file(
        {name: rng.normal(0, 0.1, shape).astype(np.float16) for name, shape in shapes.items()},
        target / "model.safetensors",
    )
    return target
