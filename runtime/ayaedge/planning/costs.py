"""What a question will cost on this machine, before it is asked: tiles, tokens, memory, seconds.

Arithmetic over figures that others provide: the manifest, the header of decoder.gguf, the machine's memory, and the
speeds that `ayaedge.planning.tuning` measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ayaedge.checks import earlier_name
from ayaedge.decoder.gguf_header import DecoderFigures
from ayaedge.hardware.machine import Memory
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.tile_budget import ImageCost
from ayaedge.manifest import Manifest
from ayaedge.planning.gpu_plan import GpuPlan, work_bytes

_PROCESS_BYTES = 120_000_000
"""Python, numpy and both libraries."""
_CACHE_BYTES = {
    "f32": 4,
    "f16": 2,
    "bf16": 2,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
}
_SMALLEST_CACHE_TYPE = 18 / 32
_VISION_ACTIVATIONS = 7
"""Float copies of a tile's widest activations that ONNX Runtime holds at once, measured at the 8B's shape."""


@dataclass(frozen=True)
class MemoryCost:
    """Bytes of main memory."""

    decoder: int
    """Weights; mapped from the file unless they are repacked, which takes as much again."""
    kv_cache: int
    work: int
    """llama.cpp's compute buffer."""
    vision: int
    """Weights and activations."""
    process: int = _PROCESS_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.decoder + self.kv_cache + self.work + self.vision + self.process


@dataclass(frozen=True)
class QuestionCost:
    """A question as it would run."""

    images: tuple[ImageCost, ...]
    prompt_tokens: int
    context: int
    memory: MemoryCost
    available_bytes: int
    vision_seconds: float | None
    """None, like the other times, where nothing was measured yet."""
    prefill_seconds: float | None
    first_token_seconds: float | None
    answer_tokens_per_second: float | None
    gpu: GpuPlan | None = None
    """What goes to graphics memory; `memory` is the rest."""
    devices: tuple[str, ...] = ()
    """What is known here of each device that it would use, in the words of `ayaedge doctor`."""

    pictures = earlier_name("pictures", "images")

    @property
    def needed_bytes(self) -> int:
        """Bytes of main memory, with what a GPU takes of it that has none of its own."""
        return self.memory.total + (self.gpu.bytes_used if self.gpu and self.gpu.shared else 0)

    @property
    def faults(self) -> list[str]:
        """Why the question cannot run here, with advice; empty if it can."""
        found = []
        if self.prompt_tokens >= self.context:
            found.append(
                f"the prompt has {self.prompt_tokens} tokens and the context holds {self.context}: lower max_tiles, "
                "send fewer images, or raise context_size"
            )
        if self.needed_bytes > self.available_bytes:
            found.append(
                f"{self.needed_bytes / 1e9:.1f} GB of memory are needed and {self.available_bytes / 1e9:.1f} GB are "
                f"free: close other programs, lower max_tiles or send fewer images (the KV cache takes "
                f"{self.memory.kv_cache / 1e9:.1f} GB), or export with a smaller quant"
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        values["memory"]["total"] = self.memory.total
        values["needed_bytes"] = self.needed_bytes
        return {**values, "fits": not self.faults, "faults": self.faults}


def cache_element_bytes(keys: str, values: str) -> float:
    """Mean bytes of a number in a KV cache of these types, scales of blocks included."""
    return sum(_CACHE_BYTES.get(name, _SMALLEST_CACHE_TYPE) for name in (keys, values)) / 2


def memory_cost(
    manifest: Manifest,
    figures: DecoderFigures,
    *,
    context: int,
    batch: int,
    cache_types: tuple[str, str],
    flash_attention: bool,
    repack: bool,
) -> MemoryCost:
    """Bytes that a loaded model takes while it answers, all of it on the processor."""
    element = cache_element_bytes(*cache_types)
    tile = 4 * max(
        3 * manifest.tiling.tile_size**2, 2 * figures.hidden * manifest.image_prompt.tokens_per_tile
    )
    return MemoryCost(
        decoder=figures.weight_bytes + repack * sum(figures.layer_bytes),
        kv_cache=figures.kv_bytes(context, element),
        work=work_bytes(figures, context=context, batch=batch, flash_attention=flash_attention),
        vision=manifest.vision_bytes + _VISION_ACTIVATIONS * tile,
    )


def without_gpu_part(memory: MemoryCost, figures: DecoderFigures, gpu: GpuPlan) -> MemoryCost:
    """What is left for main memory when a part is on a graphics processor; token embeddings always stay."""
    blocks = max(gpu.layers - 1, 0)
    moved = sum(figures.layer_bytes[figures.layers - blocks :])
    share = blocks / max(figures.layers, 1)
    return MemoryCost(
        decoder=max(memory.decoder - moved, 0),
        kv_cache=round(memory.kv_cache * (1 - share)),
        work=memory.work,
        vision=0 if gpu.vision else memory.vision,
    )


def question_cost(
    images: Sequence[ImageCost],
    prompt_tokens: int,
    memory: MemoryCost,
    machine: Memory,
    *,
    context: int,
    speeds: Speeds | None,
    gpu: GpuPlan | None = None,
) -> QuestionCost:
    """The whole of it, nothing of the prompt being known yet."""
    vision = prefill = first = rate = None
    if speeds is not None:
        vision = sum(image.tiles for image in images) * speeds.tile
        prefill = speeds.prefill(0, prompt_tokens)
        first, rate = vision + prefill, 1 / max(speeds.answer(prompt_tokens, 1), 1e-9)
    return QuestionCost(
        tuple(images), prompt_tokens, context, memory, machine.available, vision, prefill, first, rate, gpu
    )


ANSWER_ROOM = 512
"""Tokens of an answer for which there is memory before it begins; longer ones get more on the way."""
