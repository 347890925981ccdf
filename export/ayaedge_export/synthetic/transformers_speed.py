"""How fast transformers runs a model of this shape: `python -m ayaedge_export.synthetic.transformers_speed`.

    --shape 8b|32b  --precision bf16|fp32  [--layers N] [--threads N] [--tiles N] [--prompt-tokens N]

The weights are random and made in memory, so no checkpoint is needed; its answers mean nothing. A JSON object on
stdout is the result; the process is one of its own, so that its memory can be watched. Needs the extra `trace`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from ayaedge.errors import MissingExtraError
from ayaedge.hardware.machine import memory, usable_threads
from ayaedge_export.checkpoint.config import TextConfig, VisionConfig
from ayaedge_export.offline import stay_offline
from ayaedge_export.synthetic.bundle import MODELS, Shape

Precision = Literal["bf16", "fp32"]

_BYTES: dict[Precision, int] = {"bf16": 2, "fp32": 4}
_WORK_BYTES = 1_500_000_000
"""Of torch itself, activations and the KV cache of a prompt, next to the weights."""
_POOL = 1 << 22
_TEXT_TOKENS = 512
_ANSWER_TOKENS = 8
_TIMED_TILES = 2


@dataclass(frozen=True)
class Decoding:
    """Tokens of an answer."""

    context: int
    """Tokens before them."""
    tokens_per_second: float


@dataclass(frozen=True)
class TransformersSpeed:
    """What was measured; only the first fields if there is too little memory."""

    precision: Precision
    parameters: int
    needed_bytes: int
    available_bytes: int
    tile_seconds: float | None = None
    """Alone, after a first that does not count."""
    prefill_tokens: int | None = None
    prefill: float | None = None
    """Tokens per second, from an empty context."""
    first_token_seconds: float | None = None
    """A whole question about an image, with the model loaded: vision, prefill, and the first token."""
    prompt_tokens: int | None = None
    tiles: int | None = None
    decode: tuple[Decoding, ...] = ()


def measure(
    vision: VisionConfig,
    text: TextConfig,
    precision: Precision,
    *,
    threads: int | None = None,
    tiles: int = 13,
    prompt_tokens: int = 2799,
    text_tokens: int = _TEXT_TOKENS,
) -> TransformersSpeed:
    """Build a model of this shape and time it, if the free memory holds it."""
    torch = _import("torch")
    torch.set_num_threads(threads or usable_threads())
    parameters = count_parameters(vision, text)
    needed, available = parameters * _BYTES[precision] + _WORK_BYTES, memory().available
    speed = TransformersSpeed(precision, parameters, needed, available)
    if needed > available:
        return speed
    with torch.inference_mode():
        model = build_model(vision, text, precision)
        pixels = torch.randn(tiles, 3, vision.image_size, vision.image_size).to(model.dtype)
        tile = [
            _timed(partial(model.get_image_features, pixels[number % tiles][None]))
            for number in range(_TIMED_TILES + 1)
        ]
        words = _words(text, text_tokens)
        kept: list[Any] = []
        prefill = _timed(lambda: kept.append(_start(model, words)))
        short = _decode(model, kept.pop(), text_tokens)
        prompt = _prompt(model, vision, text, tiles, prompt_tokens)
        first = _timed(lambda: kept.append(_start(model, prompt, pixel_values=pixels)))
        long = _decode(model, kept.pop(), prompt.shape[1])
    return replace(
        speed,
        tile_seconds=statistics.median(tile[1:]),
        prefill_tokens=text_tokens,
        prefill=text_tokens / prefill,
        first_token_seconds=first,
        prompt_tokens=prompt.shape[1],
        tiles=tiles,
        decode=(short, long),
    )


def build_model(vision: VisionConfig, text: TextConfig, precision: Precision) -> Any:
    """A model on the CPU whose weights are random; never more than its own bytes are taken."""
    torch, transformers = _import("torch"), _import("transformers")
    from transformers.modeling_utils import no_init_weights

    config = _config(transformers, vision, text)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with no_init_weights():  # memory is not touched before it is filled
            model = transformers.AyaVisionForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(_POOL, generator=generator).to(dtype)
    for name, parameter in model.named_parameters():
        _fill(parameter.data, pool, name)
    return model.eval()


def count_parameters(vision: VisionConfig, text: TextConfig) -> int:
    """Parameters of a model of this shape, without making it."""
    torch, transformers = _import("torch"), _import("transformers")
    with torch.device("meta"):
        model = transformers.AyaVisionForConditionalGeneration(_config(transformers, vision, text))
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def _config(transformers: Any, vision: VisionConfig, text: TextConfig) -> Any:
    """The configuration as transformers spells it."""
    tower = transformers.SiglipVisionConfig(
        hidden_size=vision.hidden_size, intermediate_size=vision.intermediate_size, image_size=vision.image_size,
        num_hidden_layers=vision.num_layers, num_attention_heads=vision.num_heads, patch_size=vision.patch_size,
        layer_norm_eps=vision.layer_norm_eps, vision_use_head=False,
    )  # fmt: skip
    sliding: dict[str, Any] = {}
    if text.sliding_window is not None:
        names = {True: "sliding_attention", False: "full_attention"}
        sliding = {
            "sliding_window": text.sliding_window, "layer_types": [names[one] for one in text.layer_is_sliding]
        }  # fmt: skip
    kind = {"cohere2": transformers.Cohere2Config, "cohere": transformers.CohereConfig}[text.model_type]
    decoder = kind(
        vocab_size=text.vocab_size, hidden_size=text.hidden_size, intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_layers, num_attention_heads=text.num_heads, rope_theta=text.rope_theta,
        num_key_value_heads=text.num_kv_heads, layer_norm_eps=text.layer_norm_eps, logit_scale=text.logit_scale,
        max_position_embeddings=text.context_length, **sliding,
    )  # fmt: skip
    return transformers.AyaVisionConfig(
        vision_config=tower, text_config=decoder, downsample_factor=vision.downsample_factor,
        adapter_layer_norm_eps=vision.adapter_layer_norm_eps, alignment_intermediate_size=vision.adapter_size,
        image_token_index=text.vocab_size - 1,
    )  # fmt: skip


def _fill(weights: Any, pool: Any, name: str) -> None:
    """Draw in place: norms about 1, biases 0, matrices so that a matmul keeps the size of its input."""
    if weights.dim() < 2:
        weights.fill_(1.0 if name.endswith("weight") else 0.0)
        return
    scaled = pool * (weights.numel() / weights.shape[0]) ** -0.5
    flat = weights.view(-1)
    for start in range(0, len(flat), len(scaled)):
        part = flat[start : start + len(scaled)]
        part.copy_(scaled[: len(part)])


def _prompt(model: Any, vision: VisionConfig, text: TextConfig, tiles: int, tokens: int) -> Any:
    """Token ids (1, n) of an image of `tiles` tiles, with as many words around it as make `tokens` together."""
    torch = _import("torch")
    image = tiles * vision.tokens_per_tile
    patches = torch.full((1, image), model.config.image_token_id)
    words = _words(text, max(tokens - image, 2))
    return torch.cat([words[:, :-1], patches, words[:, -1:]], dim=1)


def _words(text: TextConfig, count: int) -> Any:
    """Any token ids (1, count) but the image token, which is the last of the vocabulary."""
    torch = _import("torch")
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, text.vocab_size - 1, (1, count), generator=generator)


def _start(model: Any, ids: Any, **inputs: Any) -> Any:
    """A prompt from an empty context, with the logits of its last token alone, as `generate` does it."""
    return model(input_ids=ids, use_cache=True, logits_to_keep=1, **inputs)


def _decode(model: Any, output: Any, context: int) -> Decoding:
    """Greedy tokens behind a prompt's output."""
    started = time.perf_counter()
    for _ in range(_ANSWER_TOKENS):
        output = model(
            input_ids=output.logits[:, -1:].argmax(-1).clamp(max=model.config.image_token_id - 1),
            past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
    return Decoding(context, _ANSWER_TOKENS / (time.perf_counter() - started))


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _import(name: str) -> Any:
    """A library of the extra `trace`."""
    stay_offline()
    try:
        return __import__(name)
    except ImportError as error:
        raise MissingExtraError("measuring transformers", "trace") from error


def main() -> None:
    """Measure what the arguments say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(MODELS), required=True)
    parser.add_argument("--precision", choices=list(_BYTES), required=True)
    parser.add_argument("--layers", type=int, help="of the decoder, instead of all")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tiles", type=int, default=13)
    parser.add_argument("--prompt-tokens", type=int, default=2799)
    given = parser.parse_args()
    shape: Shape = given.shape
    model = MODELS[shape].cut(given.layers)
    speed = measure(
        model.vision, model.text, given.precision,
        threads=given.threads, tiles=given.tiles, prompt_tokens=given.prompt_tokens,
    )  # fmt: skip
    sys.stdout.write(json.dumps(asdict(speed)) + "\n")


if __name__ == "__main__":
    main()
