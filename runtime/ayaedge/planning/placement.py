"""What a bundle runs with: what was tuned for it, and which half runs where, by one word for both and by what fits."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from ayaedge.bundle import Bundle
from ayaedge.cache.options import NO_CACHE, CacheOptions
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import BackendError, InvalidOptionError
from ayaedge.files import can_read
from ayaedge.hardware.devices import Device, Gpu, choose_decoder, decoder_gpus
from ayaedge.hardware.driver_trial import settle_drivers
from ayaedge.hardware.machine import memory
from ayaedge.hardware.vision_devices import choose_vision, vision_devices
from ayaedge.planning.costs import cache_element_bytes
from ayaedge.planning.gpu_plan import GpuPlan, plan_gpu
from ayaedge.planning.profile import MACHINE, Profile, load_profile, profile_path
from ayaedge.vision.session import VisionOptions

logger = logging.getLogger(__name__)

_VISION_ONLY = ("webgpu", "coreml", "openvino")


@dataclass(frozen=True)
class Placement:
    """What a bundle runs with on this machine."""

    decoder: DecoderOptions
    """With tuned settings, device and layers filled in."""
    vision: VisionOptions
    """With the device filled in."""
    profile: Profile | None
    """What was measured of the bundle on this machine before."""
    gpu: GpuPlan | None
    """What goes to graphics memory; None where there is none, or the options say it."""


def resolve(
    bundle: Bundle,
    device: Device = "auto",
    decoder: DecoderOptions | None = None,
    vision: VisionOptions | None = None,
    cache: CacheOptions = NO_CACHE,
) -> Placement:
    """Fill in what the options leave open: first what was tuned for the bundle, then devices and layers.

    `device` counts where they leave it open. As many layers of the decoder go to graphics memory as it holds; the
    vision tower follows if it fits beside, or if its own options name a device, whose memory is set aside first.
    InvalidOptionError if a device that was named is missing, BackendError if its driver cannot be loaded.
    """
    decoder, vision = decoder or DecoderOptions(), vision or VisionOptions()
    root = cache.root
    fault = settle_drivers(root)
    if fault and (decoder.device or device) == "vulkan":
        raise BackendError(f"vulkan does not work on this machine: {fault}; choose another device, or cpu")
    known = root is not None and can_read(root / MACHINE)
    profile = load_profile(profile_path(root, bundle)) if root and known else None
    decoder = profile.apply(decoder) if profile else decoder
    decoder = replace(decoder, device=decoder.device or device)
    named = vision.device not in (None, "auto")
    vision = replace(vision, device=vision.device or _vision_device(device, bundle))
    gpus = choose_decoder(decoder.device or "auto", decoder_gpus()) if decoder.gpu_layers is None else []
    if not gpus:
        return Placement(decoder, vision, profile, None)
    plan = _plan(bundle, decoder, vision, gpus)
    logger.info("%s", plan.reason)
    if plan.layers == 0 and decoder.device != "auto":
        logger.warning("the decoder runs on the processor: %s", plan.reason)
    if not plan.vision and not named:
        vision = replace(vision, device="cpu")
    return Placement(replace(decoder, gpu_layers=plan.layers), vision, profile, plan)


def _plan(bundle: Bundle, decoder: DecoderOptions, vision: VisionOptions, gpus: list[Gpu]) -> GpuPlan:
    manifest = bundle.manifest
    device = vision.device or "auto"
    graphs = list(manifest.gpu_graphs.values())
    tower = bool(graphs and device != "cpu" and choose_vision(device, vision_devices()))
    free, shared = sum(gpu.free_bytes for gpu in gpus), any(gpu.shares_memory for gpu in gpus)
    plan = plan_gpu(
        read_figures(bundle.decoder_path),
        free_bytes=min(free, memory().available) if shared else free,
        context=decoder.context_of(manifest.decoder.context_length),
        cache_element_bytes=cache_element_bytes(decoder.cache_type, decoder.value_type),
        batch=decoder.rows_at_once,
        flash_attention=replace(decoder, gpu_layers=-1).uses_flash,
        vision_bytes=manifest.graph_bytes(graphs[0]) if tower else None,
        vision_first=tower and device != "auto",
    )
    return replace(plan, shared=shared)


def _vision_device(device: Device, bundle: Bundle) -> Device:
    """What one word for both halves means for the tower: a format for processors stays there."""
    if device in ("auto", "cpu"):
        return device
    if bundle.manifest.gpu_graphs:
        choose_vision(device, vision_devices())  # an error if it is missing
        return device if device in _VISION_ONLY else "auto"  # which leaves it away where it does not fit
    if device in _VISION_ONLY:
        choose_vision(device, vision_devices())
        raise InvalidOptionError(
            f"{device} is for the vision tower, and the bundle's {bundle.manifest.formats.vision} runs on CPUs only: "
            'export it with vision="fp16"'
        )
    logger.info("the %s vision tower runs on the CPU", bundle.manifest.formats.vision)
    return "cpu"
