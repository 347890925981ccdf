"""What a bundle runs with: what was tuned for it, and which half runs where, by one word for both and by what fits."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ayaedge.bundle import Bundle
from ayaedge.cache.options import NO_CACHE, CacheOptions
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import BackendError, InvalidOptionError
from ayaedge.files import can_read
from ayaedge.hardware.devices import BACKENDS, Device, Gpu, choose_decoder, decoder_gpus
from ayaedge.hardware.driver_trial import settle_drivers
from ayaedge.hardware.machine import memory
from ayaedge.hardware.vision_devices import choose_vision, vision_devices
from ayaedge.planning.costs import cache_element_bytes
from ayaedge.planning.gpu_plan import GpuPlan, plan_gpu
from ayaedge.planning.profile import MACHINE, Profile, Settings, load_profile, profile_path
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
    measured: bool = False
    """Whether `ayaedge tune` found the decoder's device and layers to be the fastest."""


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
    tuned = _tuned_places(profile, decoder)
    decoder = tuned.places(decoder) if tuned else decoder
    named = vision.device not in (None, "auto")
    vision = replace(vision, device=vision.device or _vision_device(device, bundle))
    open_places = decoder.gpu_layers is None or (tuned is not None and decoder.uses_gpu)
    gpus = choose_decoder(decoder.device or "auto", decoder_gpus()) if open_places else []
    if not gpus:
        return Placement(decoder, vision, profile, None, tuned is not None)
    plan = plan_decoder(bundle, decoder, vision, gpus)
    logger.info("%s", plan.reason)
    if plan.layers == 0 and not plan.prompts and decoder.device != "auto":
        logger.warning("the decoder runs on the processor: %s", plan.reason)
    if not plan.vision and not named:
        vision = replace(vision, device="cpu")
    prompts = decoder.offload_prompts and (plan.prompts or plan.layers > 0)
    decoder = replace(decoder, gpu_layers=plan.layers, offload_prompts=prompts)
    return Placement(decoder, vision, profile, plan, tuned is not None)


def other_places(bundle: Bundle, placed: Placement, options: DecoderOptions) -> Iterator[dict[str, Any]]:
    """Where the decoder could run beside the processor, as far as there is room and `options` leave it open.

    Gives `device`, `gpu_layers` and `offload_prompts` for each kind of device: as many layers as it holds, half of all,
    and prompts alone.
    """
    asked = placed.decoder.device or "auto"
    if options.gpu_layers is not None or options.offload_prompts is not None or asked == "cpu":
        return
    there = decoder_gpus()
    for backend in BACKENDS:
        if asked not in ("auto", backend) or backend not in [gpu.backend for gpu in there]:
            continue
        gpus = choose_decoder(backend, there)
        plan = plan_decoder(bundle, replace(options, device=backend), placed.vision, gpus)
        for layers in sorted({plan.layers, min(plan.layers, plan.of // 2)} - {0}, reverse=True):
            yield {"device": backend, "gpu_layers": layers, "offload_prompts": False}
        prompts = replace(options, device=backend, gpu_layers=0, offload_prompts=True)
        if plan_decoder(bundle, prompts, placed.vision, gpus).prompts:
            yield {"device": backend, "gpu_layers": 0, "offload_prompts": True}


def _tuned_places(profile: Profile | None, decoder: DecoderOptions) -> Settings | None:
    """What was measured to be fastest, if the options leave open where layers and prompts go."""
    settings = profile.settings if profile else None
    if settings is None or settings.device is None or decoder.gpu_layers is not None:
        return None
    if decoder.offload_prompts is not None or decoder.device not in ("auto", settings.device):
        return None
    there = settings.device == "cpu" or settings.device in [gpu.backend for gpu in decoder_gpus()]
    return settings if there else None


def plan_decoder(bundle: Bundle, decoder: DecoderOptions, vision: VisionOptions, gpus: list[Gpu]) -> GpuPlan:
    """How many layers these processors hold, at most those that the options name, and whether the tower fits beside."""
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
        most=decoder.gpu_layers,
        prompts=bool(decoder.offload_prompts),
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
