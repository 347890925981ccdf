"""Plain Cohere2 models made from a checkpoint of Aya Vision: what its decoder could be merged with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.checkpoint.checkpoint import open_checkpoint

Change = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""Gives other weights for a tensor, by its name in the checkpoint."""

DECODER = "language_model."
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def noise(seed: int, size: float = 0.3) -> Change:
    """Other weights at a distance: normal noise of `size` times a tensor's own spread."""

    def change(name: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        rng = np.random.default_rng([seed, *name.encode()])
        return weights + rng.normal(0, size * weights.std(), weights.shape).astype(np.float32)

    return change


def write_language_model(
    target: Path,
    checkpoint: Path,
    change: Change,
    *,
    dtype: str = "bfloat16",
    text: Mapping[str, Any] | None = None,
    without: tuple[str, ...] = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "<|IMG_PATCH|>"),
    shards: int = 1,
) -> Path:
    """The decoder of `checkpoint` with changed weights as a model of its own, with other names for its tensors.

    `text` changes values of its config.json; the tokenizer is `without` some added tokens.
    """
    import torch
    from safetensors.torch import save_file

    opened = open_checkpoint(checkpoint)
    tensors = {
        name.removeprefix(DECODER): torch.from_numpy(change(name, opened.tensors.read(name))).to(
            getattr(torch, dtype)
        )
        for name in opened.config.text.tensors
    }
    target.mkdir(parents=True)
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    plain = config["text_config"] | {"architectures": ["Cohere2ForCausalLM"]} | dict(text or {})
    (target / "config.json").write_text(json.dumps(plain))
    (target / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    _copy_tokenizer(checkpoint, target, without)
    if shards == 1:
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        return target
    places = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, target / file, {"format": "pt"})
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return target


def write_merged_checkpoint(
    target: Path, checkpoint: Path, merged: Callable[[str], NDArray[np.float32]], dtype: str = "bfloat16"
) -> Path:
    """The checkpoint with other weights in its decoder: the third checkpoint, which an export with a merge avoids."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint, target)
    opened, stored = open_checkpoint(checkpoint), load_file(checkpoint / "model.safetensors")
    for name in opened.config.text.tensors:
        entry = opened.tensors.entries[name]
        stored[entry.stored_name] = torch.from_numpy(merged(name)).to(getattr(torch, dtype))
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    return target


def _copy_tokenizer(source: Path, target: Path, without: tuple[str, ...]) -> None:
    for name in _TOKENIZER_FILES:
        shutil.copy(source / name, target / name)
    path = target / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in without]
    path.write_text(json.dumps(data), "utf-8")
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    kept = {i: t for i, t in settings["added_tokens_decoder"].items() if t["content"] not in without}
    settings["added_tokens_decoder"] = kept
    path.write_text(json.dumps(settings), "utf-8")
