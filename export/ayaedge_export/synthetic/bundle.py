"""A bundle of Aya Vision's true shape without Aya Vision: random weights and a tokenizer of our own.

For measuring a machine where nothing was downloaded. Widths, depths, vocabulary, tiles and the length of a prompt are
those of the released checkpoints, so every figure of speed and memory is; its answers mean nothing. No weight is ever
stored in full: the vision graph is quantized from random tensors, the decoder is put together from encoded blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ayaedge.checks import check_options, plain, whole_number
from ayaedge.errors import ExportError
from ayaedge.manifest import DECODER, Formats
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.checkpoint.config import ModelConfig, TextConfig, VisionConfig
from ayaedge_export.decoder.gguf_writer import Advance, write_decoder
from ayaedge_export.exporter import write_vision
from ayaedge_export.manifest import describe, describe_writers
from ayaedge_export.plan import VisionFormat, check_disk, plan_export
from ayaedge_export.resume.staged_bundle import staged_bundle, what_is_left, write_manifest
from ayaedge_export.synthetic.random_weights import RandomBlocks, RandomTensors, RandomWeights
from ayaedge_export.synthetic.tokenizer import chat_template, fill_vocabulary, read_demo
from ayaedge_quant.recipes import DecoderFormat

Shape = Literal["8b", "32b"]
Progress = Callable[[int, int, str], None]
"""Called with megabytes of 16-bit weights that are dealt with, of how many, and what was last."""

_LICENSE = "none: drawn numbers"
_MEGABYTE = 10**6
_VISION = VisionConfig(
    image_size=364, patch_size=14, hidden_size=1152, intermediate_size=4304, num_layers=27, num_heads=16,
    layer_norm_eps=1e-6, downsample_factor=2, adapter_layer_norm_eps=1e-6, adapter_size=0, output_size=0,
)  # fmt: skip
"""Both sizes have the same tower; the connector's widths follow."""


@dataclass(frozen=True)
class SyntheticModel:
    """What a synthetic bundle is a bundle of."""

    vision: VisionConfig
    text: TextConfig
    preamble: int
    """Sentences in front of every conversation, so that it is as long as the released template's."""

    def cut(self, layers: int | None) -> SyntheticModel:
        """The same with the decoder's first `layers` alone; None keeps all."""
        if layers is None:
            return self
        sliding = self.text.layer_is_sliding[:layers]
        return replace(self, text=replace(self.text, num_layers=layers, layer_is_sliding=sliding))


MODELS: dict[Shape, SyntheticModel] = {
    "8b": SyntheticModel(
        replace(_VISION, adapter_size=28672, output_size=4096),
        TextConfig(
            model_type="cohere2", vocab_size=256000, hidden_size=4096, intermediate_size=14336, num_layers=32,
            num_heads=32, num_kv_heads=8, layer_norm_eps=1e-5, rope_theta=50000.0, logit_scale=0.25,
            context_length=16384, sliding_window=4096, layer_is_sliding=(True, True, True, False) * 8,
        ),
        preamble=23,
    ),
    "32b": SyntheticModel(
        replace(_VISION, adapter_size=49152, output_size=8192),
        TextConfig(
            model_type="cohere", vocab_size=256000, hidden_size=8192, intermediate_size=24576, num_layers=40,
            num_heads=64, num_kv_heads=8, layer_norm_eps=1e-5, rope_theta=4000000.0, logit_scale=0.0625,
            context_length=16384,
        ),
        preamble=3,
    ),
}  # fmt: skip


def write_synthetic_bundle(
    target: str | Path,
    shape: Shape,
    *,
    layers: int | None = None,
    vision: VisionFormat = "int8",
    quant: DecoderFormat = "q4_k_m",
    threads: int | None = None,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> Path:
    """Write a bundle of the shape of Aya Vision 8B or 32B to the new directory `target`, which is returned.

    `layers` cuts the decoder. The same seed gives the same bytes. An interrupted call goes on where it stopped when it
    is repeated. Raises InvalidOptionError, and ExportError if `target` exists or its disk is too small.
    """
    model = MODELS[shape]
    check_options(
        whole_number("layers", layers, least=1, most=model.text.num_layers, optional=True),
        whole_number("threads", threads, least=1, optional=True),
        whole_number("seed", seed, least=0),
    )
    return write_random_bundle(
        Path(target), f"synthetic-aya-vision-{shape}", model.cut(plain(layers)),
        vision=vision, quant=quant, threads=plain(threads), seed=plain(seed), on_progress=on_progress,
    )  # fmt: skip


def write_random_bundle(
    target: Path,
    name: str,
    model: SyntheticModel,
    *,
    vision: VisionFormat,
    quant: DecoderFormat,
    threads: int | None,
    seed: int,
    on_progress: Progress | None,
) -> Path:
    """`write_synthetic_bundle` for a model of any shape, whose vocabulary is at least the demo's."""
    random_weights = RandomWeights(seed)
    checkpoint = synthetic_checkpoint(name, model, random_weights)
    mark = repr((name, model, vision, quant, seed, describe_writers()))
    advance = _advance(checkpoint, on_progress)
    try:
        with staged_bundle(target, hashlib.sha256(mark.encode()).hexdigest()) as journal:
            plan = plan_export(checkpoint, target, quant=quant, vision=vision)
            check_disk(plan, present=journal.present_bytes)
            journal.begin()
            write_vision(plan, journal, advance)
            blocks = RandomBlocks(random_weights, plan.tensors)
            embeddings = write_decoder(
                plan, journal.directory / DECODER,
                threads=threads, advance=advance, journal=journal, encode_rows=blocks.encode_rows,
            )  # fmt: skip
            write_manifest(journal.directory, describe(checkpoint, embeddings, Formats(vision, quant)))
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error}; {what_is_left(target)}") from error
    return target


def synthetic_checkpoint(name: str, model: SyntheticModel, random_weights: RandomWeights) -> Checkpoint:
    """A checkpoint of this shape that lies nowhere: its tensors are made when they are read."""
    demo, words = read_demo()
    return Checkpoint(
        directory=Path(name),
        config=ModelConfig(model.vision, model.text, demo.tokens.image_patch),
        tokenizer=fill_vocabulary(words, model.text.vocab_size),
        tiling=replace(demo.tiling, tile_size=model.vision.image_size),
        image_prompt=replace(demo.image_prompt, tokens_per_tile=model.vision.tokens_per_tile),
        chat_template=chat_template(model.preamble),
        stop_ids=demo.tokens.stop,
        license=_LICENSE,
        tensors=RandomTensors(random_weights, {**model.vision.tensors, **model.text.tensors}),
    )


def _advance(checkpoint: Checkpoint, on_progress: Progress | None) -> Advance:
    """What the exporters call with single amounts of bytes."""
    total = sum(entry.nbytes for entry in checkpoint.tensors.entries.values())
    done = 0

    def advance(count: int, what: str) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(done // _MEGABYTE, total // _MEGABYTE, what)

    return advance
