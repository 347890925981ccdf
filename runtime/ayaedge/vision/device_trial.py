"""A bundle's vision tower on a device, compared with the processor: what a child process runs before first use."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import read_bundle
from ayaedge.hardware.vision_devices import CPU_PROVIDER, choose_vision, vision_devices
from ayaedge.manifest import VISION
from ayaedge.vision.encoder import VisionEncoder
from ayaedge.vision.session import VisionOptions, make_session, session_options, start_on


def try_tower(directory: str, device: str) -> dict[str, Any]:
    """Encode a tile there, with the same graph on the processor, and with the graph that processors have.

    Returns `form`, the number format of the graph that the device takes, None if it takes none; `cosine` between its
    embeddings and the processor's; and `gain`, how many times as fast a tile is as with the processor's graph.
    """
    bundle, options = read_bundle(directory), VisionOptions()
    (chosen,) = choose_vision(device, vision_devices())
    size = bundle.manifest.tiling.tile_size
    tile = np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)
    opened = start_on(chosen, bundle.vision_path, bundle.manifest, options)
    if opened is None:
        return {"form": None, "cosine": 0.0, "gain": 0.0}
    _run(opened.session, tile)  # compiles what the device runs
    found, seconds = _run(opened.session, tile)
    graph = bundle.directory / bundle.manifest.gpu_graphs[opened.format]
    exact, usual = _run(make_session(graph, session_options(options, {}), (CPU_PROVIDER,)), tile)
    if graph.name != VISION:
        encoder = VisionEncoder(bundle.vision_path, bundle.manifest, replace(options, device="cpu"))
        encoder.warm_up()
        started = time.perf_counter()
        encoder.run(tile)
        usual = time.perf_counter() - started
    scale = float(np.linalg.norm(exact) * np.linalg.norm(found))
    cosine = float((exact * found).sum()) / scale if np.isfinite(scale) and scale else 0.0
    return {"form": opened.format, "cosine": cosine, "gain": usual / seconds}


def _run(session: Any, tile: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    started = time.perf_counter()
    (embeddings,) = session.run(None, {session.get_inputs()[0].name: tile})
    return embeddings, time.perf_counter() - started
