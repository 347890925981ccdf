"""Which half of a bundle runs where: one word for both, what the options say of each, and what fits."""

from __future__ import annotations

import logging
from dataclasses import replace

from ayaedge.bundle import Bundle
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import InvalidOptionError
from ayaedge.hardware.devices import (
    CPU_PROVIDER,
    Device,
    Gpu,
    choose_decoder,
    choose_vision,
    decoder_gpus,
    vision_providers,
)
from ayaedge.planning.costs import cache_element_bytes
from ayaedge.planning.gpu_plan import GpuPlan, plan_gpu
from ayaedge.vision.session import ON_PROCESSORS_ONLY, VisionOptions

logger = logging.getLogger(__name__)

_VISION_ONLY = ("directml", "coreml", "openvino")


def place(
    bundle: Bundle, device: Device, decoder: DecoderOptions, vision: VisionOptions
) -> tuple[DecoderOptions, VisionOptions]:
    """The options with devices and layers filled in: `device` counts where they leave it open.

    As many layers of the decoder go to graphics memory as it holds; the vision tower follows if it fits beside, or if
    its own options name a device, whose memory is set aside first. InvalidOptionError if a device that was named is
    missing.
    """
    named = vision.device not in (None, "auto")
    decoder, vision = find_devices(bundle, device, decoder, vision)
    plan = plan_placement(bundle, decoder, vision)
    if plan is None:
        return decoder, vision
    logger.info("%s", plan.reason)
    if plan.layers == 0 and decoder.device != "auto":
        logger.warning("the decoder runs on the processor: %s", plan.reason)
    if not plan.vision and not named:
        vision = replace(vision, device="cpu")
    return replace(decoder, gpu_layers=plan.layers), vision


def find_devices(
    bundle: Bundle, device: Device, decoder: DecoderOptions, vision: VisionOptions
) -> tuple[DecoderOptions, VisionOptions]:
    """The options with the devices filled in, but not the layers; errors as `place`."""
    decoder = replace(decoder, device=decoder.device or device)
    return decoder, replace(vision, device=vision.device or _vision_device(device, bundle))


def plan_placement(bundle: Bundle, decoder: DecoderOptions, vision: VisionOptions) -> GpuPlan | None:
    """What goes to graphics memory with these options, in which devices are filled in; None if nothing is to decide."""
    if decoder.gpu_layers is not None:
        return None
    gpus = choose_decoder(decoder.device or "auto", decoder_gpus())
    return _plan(bundle, decoder, vision, gpus) if gpus else None


def _plan(bundle: Bundle, decoder: DecoderOptions, vision: VisionOptions, gpus: list[Gpu]) -> GpuPlan:
    manifest = bundle.manifest
    device = vision.device or "auto"
    portable = manifest.formats.vision not in ON_PROCESSORS_ONLY
    tower = portable and choose_vision(device, vision_providers())[0] != CPU_PROVIDER
    return plan_gpu(
        read_figures(bundle.decoder_path),
        free_bytes=sum(gpu.free_bytes for gpu in gpus),
        context=decoder.context_of(manifest.decoder.context_length),
        cache_element_bytes=cache_element_bytes(decoder.cache_type, decoder.value_type),
        batch=decoder.rows_at_once,
        flash_attention=replace(decoder, gpu_layers=-1).uses_flash,
        vision_bytes=manifest.vision_bytes if tower else None,
        vision_first=tower and device != "auto",
    )


def _vision_device(device: Device, bundle: Bundle) -> Device:
    """What one word for both halves means for the tower: a format for processors stays there."""
    if device in ("auto", "cpu"):
        return device
    if bundle.manifest.formats.vision not in ON_PROCESSORS_ONLY:
        choose_vision(device, vision_providers())  # an error if it is missing
        return device if device in _VISION_ONLY else "auto"  # which leaves it away where it does not fit
    if device in _VISION_ONLY:
        choose_vision(device, vision_providers())
        raise InvalidOptionError(
            f"{device} is for the vision tower, and the bundle's {bundle.manifest.formats.vision} runs on CPUs only: "
            "export it with --vision fp16"
        )
    logger.info("the %s vision tower runs on the CPU", bundle.manifest.formats.vision)
    return "cpu"
