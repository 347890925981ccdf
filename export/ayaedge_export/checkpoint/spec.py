"""The tensors that a checkpoint must have: names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ayaedge_export.checkpoint.config import TextConfig, VisionConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors, by their names on the hub."""

TOWER = "vision_tower.vision_model"
CONNECTOR = "multi_modal_projector"


def layer_prefix(layer: int) -> str:
    """What the names of an encoder layer's tensors begin with."""
    return f"{TOWER}.encoder.layers.{layer}"


HEAD_TENSOR = "language_model.lm_head.weight"


EMBEDDINGS_TENSOR = "language_model.model.embed_tokens.weight"


def text_tensors(text: TextConfig) -> Shapes:
    """Names on the hub and shapes of every tensor of the decoder."""
    hidden, inner, head = text.hidden_size, text.intermediate_size, text.head_dim
    query, key = text.num_heads * head, text.num_kv_heads * head
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (key, hidden),
        "self_attn.v_proj": (key, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    if text.use_qk_norm:
        layer["self_attn.q_norm"] = (text.num_heads, head)
        layer["self_attn.k_norm"] = (text.num_kv_heads, head)
    shapes = {EMBEDDINGS_TENSOR: (text.vocab_size, hidden), "language_model.model.norm.weight": (hidden,)}
    for index in range(text.num_layers):
        for name, shape in layer.items():
            shapes[f"language_model.model.layers.{index}.{name}.weight"] = shape
    return shapes


UNUSED_TENSORS = (f"{TOWER}.post_layernorm.weight", f"{TOWER}.post_layernorm.bias")
"""Stored in every checkpoint, but Aya Vision takes its features before this layer."""


def vision_tensors(config: VisionConfig) -> Shapes:
    """Names on the hub and shapes of every tensor of tower and connector, `UNUSED_TENSORS` included."""
    hidden, mlp, patch = config.hidden_size, config.intermediate_size, config.patch_size
    embeddings = f"{TOWER}.embeddings"
    shapes: dict[str, tuple[int, ...]] = {
        f"{embeddings}.patch_embedding.weight": (hidden, 3, patch, patch),
        f"{embeddings}.patch_embedding.bias": (hidden,),
        f"{embeddings}.position_embedding.weight": (config.patches_per_side**2, hidden),
    }
    for layer in range(config.num_layers):
        prefix = layer_prefix(layer)
        shapes |= _affine(f"{prefix}.layer_norm1", hidden)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _affine(f"{prefix}.self_attn.{name}", hidden, hidden)
        shapes |= _affine(f"{prefix}.layer_norm2", hidden)
        shapes |= _affine(f"{prefix}.mlp.fc1", mlp, hidden)
        shapes |= _affine(f"{prefix}.mlp.fc2", hidden, mlp)
    shapes |= _affine(f"{TOWER}.post_layernorm", hidden)
    joined = hidden * config.downsample_factor**2
    shapes |= _affine(f"{CONNECTOR}.layernorm", joined)
    shapes |= _affine(f"{CONNECTOR}.linear_1", config.adapter_size, joined)
    shapes |= _affine(f"{CONNECTOR}.linear_2", config.output_size, config.adapter_size // 2)
    return shapes


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
