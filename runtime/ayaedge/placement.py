"""Which half of a bundle runs where: one word for both, what the options say of each, and what fits."""

from __future__ import annotations

import dataclasses
import logging

from ayaedge.bundle import VISION, Bundle
from ayaedge.costs import cache_element_bytes
from ayaedge.decoder import DecoderOptions
from ayaedge.devices import (
    CPU_PROVIDER,
    Device,
    choose_decoder,
    choose_vision,
    decoder_gpus,
    plan_gpu,
    vision_providers,
)
from ayaedge.gguf_file import read_figures
from ayaedge.vision import ON_PROCESSORS_ONLY, VisionOptions

logger = logging.getLogger(__name__)


def place(
    bundle: Bundle, device: Device, decoder: DecoderOptions, vision: VisionOptions
) -> tuple[DecoderOptions, VisionOptions]:
    """The options with devices and layers filled in: `device` counts where they leave it open.

    As many layers of the decoder go to graphics memory as it holds; the vision tower follows if it fits beside, or if
    its device was named. InvalidOptionError if a device that was named is missing.
    """
    decoder = dataclasses.replace(decoder, device=decoder.device or device)
    vision_named = vision.device not in (None, "auto") or device != "auto"
    vision = dataclasses.replace(vision, device=vision.device or _vision_device(device, bundle))
    assert decoder.device is not None and vision.device is not None
    gpus = choose_decoder(decoder.device, decoder_gpus())
    if not gpus or decoder.gpu_layers is not None:
        return decoder, vision
    figures = read_figures(bundle.decoder_path)
    formats = bundle.manifest.formats
    portable = formats.vision not in ON_PROCESSORS_ONLY
    tower = portable and choose_vision(vision.device, vision_providers())[0] != CPU_PROVIDER
    weights = sum(info.size for name, info in bundle.manifest.files.items() if name.startswith(VISION))
    plan = plan_gpu(
        figures,
        free_bytes=sum(gpu.free_bytes for gpu in gpus),
        context=decoder.context_of(bundle.manifest.decoder.context_length),
        cache_element_bytes=cache_element_bytes(decoder.cache_type, decoder.value_type),
        batch=decoder.rows_at_once,
        flash_attention=dataclasses.replace(decoder, gpu_layers=-1).uses_flash,
        vision_bytes=weights if tower else None,
    )
    logger.info("%s", plan.reason)
    if tower and not plan.vision and not vision_named:
        vision = dataclasses.replace(vision, device="cpu")
    return dataclasses.replace(decoder, gpu_layers=plan.layers), vision


def _vision_device(device: Device, bundle: Bundle) -> Device:
    """What one word for both halves means for the tower: a format for processors stays there."""
    if bundle.manifest.formats.vision in ON_PROCESSORS_ONLY and device != "auto":
        logger.info("the %s vision tower runs on the CPU", bundle.manifest.formats.vision)
        return "cpu"
    return device
