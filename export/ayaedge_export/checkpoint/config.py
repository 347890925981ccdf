"""What the configuration files of a checkpoint say, in one form for every spelling of them.

Pure data: no file is opened here (see `ayaedge_export.checkpoint.checkpoint`) and no tensor is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ayaedge.decoder.gguf_header import MOST_LAYERS
from ayaedge.errors import CheckpointError
from ayaedge_export.checkpoint.fields import Fields
from ayaedge_export.checkpoint.spec import Shapes, text_tensors, vision_tensors


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

    @cached_property
    def tensors(self) -> Shapes:
        """Names on the hub and shapes of every tensor that tower and connector have."""
        return vision_tensors(self)


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

    @cached_property
    def tensors(self) -> Shapes:
        """Names on the hub and shapes of every tensor that the decoder has."""
        return text_tensors(self)


@dataclass(frozen=True)
class ModelConfig:
    """Both halves of the model, and what joins them."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    """The token whose embedding is replaced by image embeddings."""
    transformers_version: str | None = None
    """What wrote config.json; None if it does not say."""
    tied: bool = True
    """Whether the output head is the embeddings, by the configuration."""


ARCHITECTURE = "AyaVisionForConditionalGeneration"
MODEL_TYPE = "aya_vision"
DECODER_TYPES = ("cohere2", "cohere")

# Defaults of the configuration classes, for keys that a minimal config.json leaves out.
_SIGLIP_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16, "layer_norm_eps": 1e-6,
}  # fmt: skip
_COHERE_DEFAULTS = {
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40,
    "num_attention_heads": 64, "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "rope_theta": 10000.0,
    "logit_scale": 0.0625, "sliding_window": 4096,
}  # fmt: skip
_DEFAULT_PATTERN = 4
"""Every so many layers one does not slide."""
_LARGEST_CONTEXT = 1 << 24
"""Tokenizer files write an absurdly large model_max_length for "not set"."""
_MOST_VISION_LAYERS = 1024
_QK_NORM_LAYERS = 64
"""llama.cpp's command-r graph has query and key norms only in models of at least this many layers."""
_LAYER_TYPES = {"sliding_attention": True, "full_attention": False}


def parse_config(
    config: Mapping[str, Any], faults: list[str], *, tokenizer_max_length: object = None
) -> ModelConfig:
    """The model that a config.json describes; what cannot be run is appended to `faults`.

    Raises CheckpointError for another architecture, about which there is nothing more to say.
    """
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        raise CheckpointError(
            f"this is a checkpoint of the architecture {model_type!r} ({_architectures(config)}); "
            f"supported is {MODEL_TYPE!r} ({ARCHITECTURE}): Aya Vision 8B, 32B and fine-tuned versions of them"
        )
    fields = Fields(config, "config.json", faults)
    decoder = fields.section("text_config", _COHERE_DEFAULTS, required=True)
    text = _parse_text(decoder, tokenizer_max_length, faults)
    vision = _parse_vision(fields, text.hidden_size, faults)
    key = "image_token_id" if "image_token_id" in fields else "image_token_index"
    if key not in fields:
        faults.append("config.json names no image token (image_token_index)")
    version = fields.get("transformers_version")
    tied = [part.flag("tie_word_embeddings", default=True) for part in (fields, decoder)]
    return ModelConfig(
        vision,
        text,
        fields.integer(key, 0, low=0),
        version if isinstance(version, str) else None,
        tied=all(tied),
    )


def parse_language_model(
    config: Mapping[str, Any], faults: list[str], *, tokenizer_max_length: object = None
) -> tuple[TextConfig, bool]:
    """The decoder that a config.json describes, a plain language model's or the one inside an Aya Vision, and whether
    its output head is tied to the embeddings.

    What cannot be run is appended to `faults`. Raises CheckpointError for another architecture.
    """
    model_type = config.get("model_type")
    outer = Fields(config, "config.json", faults, _COHERE_DEFAULTS if model_type in DECODER_TYPES else None)
    if model_type not in (*DECODER_TYPES, MODEL_TYPE):
        raise CheckpointError(
            f"this is a model of the architecture {model_type!r} ({_architectures(config)}); the decoder of an Aya "
            f"Vision is of type {' or '.join(map(repr, DECODER_TYPES))}"
        )
    inside = model_type == MODEL_TYPE
    fields = outer.section("text_config", _COHERE_DEFAULTS, required=True) if inside else outer
    tied = [part.flag("tie_word_embeddings", default=True) for part in (outer, fields)]
    return _parse_text(fields, tokenizer_max_length, faults), all(tied)


def _architectures(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return ", ".join(map(str, named)) if isinstance(named, list) and named else "no architecture named"


def _parse_vision(config: Fields, output_size: int, faults: list[str]) -> VisionConfig:
    tower = config.section("vision_config", _SIGLIP_DEFAULTS, required=True)
    tower.expect("model_type", "siglip_vision_model")
    tower.expect("hidden_act", "gelu_pytorch_tanh")
    tower.expect("num_channels", 3)
    config.expect("vision_feature_layer", -1)
    config.expect("vision_feature_select_strategy", "full")
    image_size = tower.integer("image_size", high=4096)
    vision = VisionConfig(
        image_size=image_size,
        patch_size=tower.integer("patch_size", high=image_size),
        hidden_size=tower.integer("hidden_size"),
        intermediate_size=tower.integer("intermediate_size"),
        num_layers=tower.integer("num_hidden_layers", high=_MOST_VISION_LAYERS),
        num_heads=tower.integer("num_attention_heads"),
        layer_norm_eps=tower.number("layer_norm_eps", 1e-6),
        downsample_factor=config.integer("downsample_factor", 2, high=64),
        adapter_layer_norm_eps=config.number("adapter_layer_norm_eps", 1e-6),
        adapter_size=(
            config.integer("alignment_intermediate_size")
            if "alignment_intermediate_size" in config
            else output_size
        ),
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
    if vision.adapter_size % 2:
        faults.append(f"the connector's width {vision.adapter_size} cannot be halved for SwiGLU")
    return vision


def _parse_text(fields: Fields, tokenizer_max_length: object, faults: list[str]) -> TextConfig:
    model_type = fields.text("model_type", "cohere2")
    if model_type not in DECODER_TYPES:
        faults.append(
            f"the decoder is of type {model_type!r}; supported are 'cohere2' (8B) and 'cohere' (32B)"
        )
    fields.expect("hidden_act", "silu")
    if fields.get("attention_bias"):
        faults.append("text_config has attention_bias, which llama.cpp's Cohere graphs lack")
    slides = model_type == "cohere2"
    num_layers = fields.integer("num_hidden_layers", high=MOST_LAYERS)
    num_heads = fields.integer("num_attention_heads")
    key_heads = "num_key_value_heads" in fields
    text = TextConfig(
        model_type=model_type,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", high=num_heads) if key_heads else num_heads,
        layer_norm_eps=fields.number("layer_norm_eps", 1e-5),
        rope_theta=_rope_theta(fields, faults),
        logit_scale=fields.number("logit_scale", 0.0625),
        context_length=_context_length(fields, tokenizer_max_length),
        use_qk_norm=bool(fields.get("use_qk_norm")),
        sliding_window=fields.integer("sliding_window", 4096) if slides else None,
        layer_is_sliding=_sliding_layers(fields, num_layers, faults) if slides else (),
    )
    if (
        fields.get("head_dim") not in (None, text.head_dim)
        or text.hidden_size % num_heads
        or text.head_dim % 2
    ):
        faults.append(
            f"the head size must be hidden_size / num_attention_heads and even, not {fields.get('head_dim')}"
        )
    if num_heads % text.num_kv_heads:
        faults.append(f"{num_heads} attention heads cannot share {text.num_kv_heads} key heads")
    _check_norms(text, faults)
    return text


def _check_norms(text: TextConfig, faults: list[str]) -> None:
    many = text.model_type == "cohere" and text.num_layers >= _QK_NORM_LAYERS
    if text.use_qk_norm and not many:
        faults.append(
            f"text_config has use_qk_norm with {text.num_layers} layers of type {text.model_type!r}; llama.cpp "
            f"loads query and key norms only for 'cohere' with {_QK_NORM_LAYERS} layers or more"
        )
    if many and not text.use_qk_norm:
        faults.append(
            f"text_config has {text.num_layers} layers of type 'cohere' without use_qk_norm; llama.cpp expects "
            f"query and key norms from {_QK_NORM_LAYERS} layers on"
        )


def _rope_theta(fields: Fields, faults: list[str]) -> float:
    """The base of the rotary embedding; newer files keep it in `rope_parameters`."""
    parameters, scaling = fields.section("rope_parameters"), fields.section("rope_scaling")
    kind = parameters.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    if kind != "default":
        faults.append(f"text_config scales its rotary embedding ({kind!r}), which Aya Vision does not do")
    return (parameters if "rope_theta" in parameters else fields).number("rope_theta", 10000.0)


def _context_length(fields: Fields, tokenizer_max_length: object) -> int:
    """The longest context that any of the files states."""
    stated = (fields.get("model_max_length"), tokenizer_max_length)
    sane = [int(n) for n in stated if isinstance(n, (int, float)) and 1 < n < _LARGEST_CONTEXT]
    return max([fields.integer("max_position_embeddings", low=2, high=_LARGEST_CONTEXT), *sane])


def _sliding_layers(fields: Fields, num_layers: int, faults: list[str]) -> tuple[bool, ...]:
    """Which layers slide: as listed, or all but every n-th."""
    listed = fields.get("layer_types")
    if listed is None:
        key = "sliding_window_pattern" if "sliding_window_pattern" in fields else "_sliding_window_pattern"
        period = fields.integer(key, _DEFAULT_PATTERN)
        sliding = tuple((layer + 1) % period != 0 for layer in range(num_layers))
    elif isinstance(listed, list) and len(listed) == num_layers and all(map(_is_layer_type, listed)):
        sliding = tuple(_LAYER_TYPES[kind] for kind in listed)
    else:
        faults.append(f"text_config must have one of {', '.join(_LAYER_TYPES)} for each layer in layer_types")
        return (True,) * num_layers
    if not any(sliding):
        faults.append("no layer of the decoder slides, which llama.cpp's cohere2 graph does not allow")
    return sliding


def _is_layer_type(kind: object) -> bool:
    return isinstance(kind, str) and kind in _LAYER_TYPES
