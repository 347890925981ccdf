"""A question's cost without loading the weights: the tokenizer alone is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from ayaedge.bundle import Bundle
from ayaedge.cache.options import CacheOptions
from ayaedge.cache.verified import verified
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import DecoderOptions, repacks_by_default
from ayaedge.decoder.vocabulary import open_vocabulary
from ayaedge.errors import AyaEdgeError
from ayaedge.hardware.devices import Device
from ayaedge.hardware.machine import memory
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.tile_budget import TileChoice, image_cost, tiles_within
from ayaedge.planning.costs import ANSWER_ROOM, QuestionCost, memory_cost, question_cost, without_gpu_part
from ayaedge.planning.device_check import recall_devices, uses_devices
from ayaedge.planning.placement import Placement, resolve
from ayaedge.text.prompt import Message, PromptBuilder
from ayaedge.vision.session import VisionOptions


def plan_question(
    bundle: Bundle,
    sizes: Sequence[tuple[int, int]],
    question: str = "",
    *,
    choice: TileChoice | None = None,
    device: Device = "auto",
    decoder: DecoderOptions | None = None,
    vision: VisionOptions | None = None,
    cache: CacheOptions | None = None,
) -> QuestionCost:
    """What `question` about images of these sizes (width, height) takes on this machine.

    Times are known where the bundle was measured before; the policy `auto` cannot choose without them and raises
    AyaEdgeError. Nothing of the prompt is taken as known.
    """
    placed, tried = _placed(bundle, device, decoder, vision, cache or CacheOptions())
    manifest, options, profile = bundle.manifest, placed.decoder, placed.profile

    def speeds() -> Speeds:
        if profile is None:
            raise AyaEdgeError(
                "tiles cannot be chosen by time before this machine was measured (AyaVision.measure)"
            )
        return profile.speeds

    with _prompts(bundle) as prompts:
        before = len(prompts.preamble())
        chosen = tiles_within(
            choice or TileChoice(),
            sizes,
            manifest.tiling,
            speeds,
            tokens_of=prompts.tokens_of_image,
            around=before,
        )
        images = [image_cost(size, manifest, chosen) for size in sizes]
        message = Message("user", question, len(images))
        prompt = prompts.build([message], [image.tiles for image in images])
    context = options.context_of(manifest.decoder.context_length)
    figures, gpu = read_figures(bundle.decoder_path), placed.gpu
    needed = memory_cost(
        manifest,
        figures,
        context=min(len(prompt.ids) + ANSWER_ROOM, context),
        batch=options.rows_at_once,
        cache_types=(options.cache_type, options.value_type),
        flash_attention=options.uses_flash,
        repack=repacks_by_default() if options.repack is None else options.repack,
    )
    if gpu is not None:
        needed = without_gpu_part(needed, figures, gpu)
    measured = profile.speeds if profile else None
    cost = question_cost(images, len(prompt.ids), needed, memory(), context=context, speeds=measured, gpu=gpu)
    return replace(cost, devices=tuple(tried))


def _placed(
    bundle: Bundle,
    device: Device,
    decoder: DecoderOptions | None,
    vision: VisionOptions | None,
    cache: CacheOptions,
) -> tuple[Placement, list[str]]:
    """Where both halves would run by all that is remembered of devices, and what that is."""
    placed = resolve(bundle, device, decoder, vision, cache)
    if not uses_devices(bundle, placed):
        return placed, []
    known, said = recall_devices(verified(bundle, cache.root), placed, cache.root)
    if known != placed:  # what is left alone takes no graphics memory
        placed = resolve(
            bundle, device, decoder if known.decoder.uses_gpu else known.decoder, known.vision, cache
        )
    return placed, said


@contextmanager
def _prompts(bundle: Bundle) -> Iterator[PromptBuilder]:
    with open_vocabulary(bundle.decoder_path) as vocabulary:
        yield PromptBuilder(bundle.manifest, vocabulary.tokenize)
