"""What the configuration files of a checkpoint say, in one form for every spelling of them.

Pure data: no file is opened here (see `ayaedge_export.checkpoint`) and no tensor is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ayaedge.errors import CheckpointError, list_faults


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower and the connector that feeds the decoder."""

    image_size: int
    """Side of a tile, in pixels."""
    patch_size: int
    """Side of a patch, in pixels."""
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    layer_norm_eps: float
    downsample_factor: int
    """Side of the square of patches that pixel shuffle joins into one image token."""
    adapter_layer_norm_eps: float
    adapter_size: int
    """Rows of the connector's first linear: twice the width after SwiGLU."""
    output_size: int
    """Width of an image embedding: the decoder's hidden size."""

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def tokens_per_side(self) -> int:
        return self.patches_per_side // self.downsample_factor

    @property
    def tokens_per_tile(self) -> int:
        return self.tokens_per_side**2


@dataclass(frozen=True)
class TextConfig:
    """The decoder: Cohere2 (sliding window, global layers without RoPE) or Cohere (RoPE on every layer)."""

    model_type: str
    """`cohere2` or `cohere`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    layer_norm_eps: float
    rope_theta: float
    logit_scale: float
    context_length: int
    """Most tokens of a prompt and its answer together."""
    use_qk_norm: bool = False
    sliding_window: int | None = None
    """Tokens a sliding layer sees (cohere2 only)."""
    layer_is_sliding: tuple[bool, ...] = ()
    """For each layer whether it slides (and has RoPE); empty for cohere."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class ModelConfig:
    """Both halves of the model, and what joins them."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    """The token whose embedding is replaced by image embeddings."""


ARCHITECTURE = "AyaVisionForConditionalGeneration"
MODEL_TYPE = "aya_vision"

_Json = Mapping[str, Any]
# Defaults of the configuration classes, for keys that a minimal config.json leaves out.
_SIGLIP_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}  # fmt: skip
_COHERE_DEFAULTS = {
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40,
    "num_attention_heads": 64, "hidden_act": "silu", "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "logit_scale": 0.0625, "sliding_window": 4096,
}  # fmt: skip
_LARGEST_CONTEXT = 1 << 30
"""Tokenizer files write an absurdly large model_max_length for "not set"."""
_QK_NORM_LAYERS = 64
"""llama.cpp's command-r graph has query and key norms only in models of at least this many layers."""


def parse_config(config: _Json, *, tokenizer_max_length: int | None = None) -> ModelConfig:
    """The model that a config.json describes; CheckpointError names everything that cannot be run."""
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        raise CheckpointError(
            f"this is a checkpoint of the architecture {model_type!r} ({_architectures(config)}); "
            f"supported is {MODEL_TYPE!r} ({ARCHITECTURE}): Aya Vision 8B, 32B and fine-tuned versions of them"
        )
    faults: list[str] = []
    text = _parse_text(config.get("text_config") or {}, tokenizer_max_length, faults)
    vision = _parse_vision(config, text.hidden_size, faults)
    if not config.get("tie_word_embeddings", True):
        faults.append(
            "the output head is not tied to the embeddings, which llama.cpp's Cohere graphs require"
        )
    if faults:
        raise CheckpointError(list_faults("config.json", faults))
    return ModelConfig(
        vision, text, int(config.get("image_token_index", config.get("image_token_id", 255036)))
    )


def _architectures(config: _Json) -> str:
    return ", ".join(config.get("architectures") or ["no architecture named"])


def _parse_vision(config: _Json, output_size: int, faults: list[str]) -> VisionConfig:
    given = config.get("vision_config") or {}
    values = {**_SIGLIP_DEFAULTS, **given}
    _require(values, "model_type", "siglip_vision_model", "vision_config", faults)
    _require(values, "hidden_act", "gelu_pytorch_tanh", "vision_config", faults)
    _require(values, "num_channels", 3, "vision_config", faults)
    _require(config, "vision_feature_layer", -1, "config", faults)
    _require(config, "vision_feature_select_strategy", "full", "config", faults)
    vision = VisionConfig(
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        num_heads=values["num_attention_heads"],
        layer_norm_eps=values["layer_norm_eps"],
        downsample_factor=config.get("downsample_factor", 2),
        adapter_layer_norm_eps=config.get("adapter_layer_norm_eps", 1e-6),
        adapter_size=config.get("alignment_intermediate_size") or output_size,
        output_size=output_size,
    )
    if vision.patches_per_side % vision.downsample_factor:
        faults.append(
            f"{vision.patches_per_side} patches per side cannot be joined by {vision.downsample_factor}"
        )
    if vision.hidden_size % vision.num_heads:
        faults.append(
            f"vision hidden size {vision.hidden_size} is not a multiple of {vision.num_heads} heads"
        )
    return vision


def _parse_text(given: _Json, tokenizer_max_length: int | None, faults: list[str]) -> TextConfig:
    values = {**_COHERE_DEFAULTS, **given}
    model_type = str(given.get("model_type", "cohere2"))
    if model_type not in ("cohere2", "cohere"):
        faults.append(
            f"the decoder is of type {model_type!r}; supported are 'cohere2' (8B) and 'cohere' (32B)"
        )
    _require(values, "hidden_act", "silu", "text_config", faults)
    if values.get("attention_bias"):
        faults.append("text_config has attention_bias, which llama.cpp's Cohere graphs lack")
    num_layers, num_heads = values["num_hidden_layers"], values["num_attention_heads"]
    text = TextConfig(
        model_type=model_type,
        vocab_size=values["vocab_size"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=values.get("num_key_value_heads") or num_heads,
        layer_norm_eps=values["layer_norm_eps"],
        rope_theta=_rope_theta(values, faults),
        logit_scale=values["logit_scale"],
        context_length=_context_length(values, tokenizer_max_length),
        use_qk_norm=bool(values.get("use_qk_norm")),
        sliding_window=values["sliding_window"] if model_type == "cohere2" else None,
        layer_is_sliding=_sliding_layers(values, num_layers) if model_type == "cohere2" else (),
    )
    if values.get("head_dim") not in (None, text.head_dim) or text.hidden_size % num_heads:
        faults.append(
            f"the head size must be hidden_size / num_attention_heads, not {values.get('head_dim')}"
        )
    if text.use_qk_norm and (model_type != "cohere" or num_layers < _QK_NORM_LAYERS):
        faults.append(
            f"text_config has use_qk_norm with {num_layers} layers of type {model_type!r}; llama.cpp loads "
            f"query and key norms only for 'cohere' with {_QK_NORM_LAYERS} layers or more"
        )
    if model_type == "cohere" and num_layers >= _QK_NORM_LAYERS and not text.use_qk_norm:
        faults.append(
            f"text_config has {num_layers} layers of type 'cohere' without use_qk_norm; llama.cpp expects query "
            f"and key norms from {_QK_NORM_LAYERS} layers on"
        )
    return text


def _rope_theta(values: _Json, faults: list[str]) -> float:
    """The base of the rotary embedding; newer files keep it in `rope_parameters`."""
    parameters = values.get("rope_parameters") or {}
    scaling = values.get("rope_scaling") or {}
    kind = parameters.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        faults.append(f"text_config scales its rotary embedding ({kind!r}), which Aya Vision does not do")
    return float(parameters["rope_theta"] if "rope_theta" in parameters else values["rope_theta"])


def _context_length(values: _Json, tokenizer_max_length: int | None) -> int:
    stated = (values["max_position_embeddings"], values.get("model_max_length"), tokenizer_max_length)
    return max(int(length) for length in stated if length and length < _LARGEST_CONTEXT)


def _sliding_layers(values: _Json, num_layers: int) -> tuple[bool, ...]:
    """Which layers slide: as listed, or all but every n-th (4 unless the file says otherwise)."""
    listed = values.get("layer_types")
    if listed:
        return tuple(kind == "sliding_attention" for kind in listed)
    period = values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or 4
    return tuple((layer + 1) % period != 0 for layer in range(num_layers))


def _require(values: _Json, key: str, wanted: object, where: str, faults: list[str]) -> None:
    if values.get(key, wanted) != wanted:
        faults.append(f"{where} has {key} {values[key]!r}; supported is {wanted!r}")
