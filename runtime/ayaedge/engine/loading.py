"""A bundle and what was asked for to an engine: both halves, where they run, and what was tuned for them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

from ayaedge.bundle import Bundle
from ayaedge.cache.options import CacheOptions, prepared_graphs
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.kernel_trial import settle_acceleration, verdict_of
from ayaedge.decoder.options import DecoderOptions
from ayaedge.decoder.repacking import require_repacking
from ayaedge.engine.engine import Engine
from ayaedge.hardware.devices import Device
from ayaedge.planning.device_check import check_devices
from ayaedge.planning.placement import resolve
from ayaedge.vision.encoder import VisionEncoder, open_encoder
from ayaedge.vision.session import VisionOptions


@dataclass(frozen=True)
class EngineOptions:
    """What is asked for when a bundle is loaded."""

    device: Device = "auto"
    decoder: DecoderOptions = field(default_factory=DecoderOptions)
    vision: VisionOptions | None = None
    cache: CacheOptions = field(default_factory=CacheOptions)
    """With a directory that is there: `CacheOptions.settled`."""


def open_engine(bundle: Bundle, options: EngineOptions) -> Engine:
    """Load both halves of a bundle; errors as `AyaVision.load`."""
    cache = options.cache
    placed = resolve(bundle, options.device, options.decoder, options.vision, cache)
    placed = check_devices(bundle, placed, cache.root)
    require_repacking(bundle, placed.decoder, cache.root)
    settled = settle_acceleration(placed.decoder, cache.root)
    with ThreadPoolExecutor(1) as pool:  # the tower warms up while the decoder loads
        loading = pool.submit(
            open_encoder,
            bundle,
            placed.vision,
            keep_bytes=cache.embedding_bytes,
            prepared=prepared_graphs(cache),
        )
        with ExitStack() as loaded:
            loaded.callback(_close_result, loading)
            half = loaded.enter_context(Decoder(bundle.decoder_path, bundle.manifest, settled))
            gain = verdict_of(settled, cache.root).gain or 1.0
            engine = Engine(bundle, loading.result(), half, cache, placed.profile, gain)
            loaded.pop_all()
    return engine


def _close_result(loading: Future[VisionEncoder]) -> None:
    """Close an encoder that was loaded, or is being loaded, for nothing."""
    with suppress(Exception):  # the other half's error is the one that is raised
        loading.result().close()
