"""The vision tower and connector: normalised tiles in, image embeddings out, through ONNX Runtime."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ayaedge import ort
from ayaedge.bundle import Bundle
from ayaedge.cache.prepared_graphs import PreparedGraphs
from ayaedge.cache.stores import RecentArrays
from ayaedge.cancellation import Cancellation, interruptible
from ayaedge.errors import BackendError, BundleError, ClosedError, OutOfMemoryError
from ayaedge.hardware.machine import processor
from ayaedge.images.tiling import normalize
from ayaedge.manifest import Manifest
from ayaedge.vision.session import VisionOptions, open_session

logger = logging.getLogger(__name__)

_NO_MEMORY = re.compile(r"bad_alloc|bad allocation|failed to allocate|out of memory", re.IGNORECASE)
"""What ONNX Runtime and its providers say when there is no memory left; it has no code of its own."""


class VisionEncoder:
    """One ONNX Runtime session. `close()` frees it.

    The embeddings of the tiles that were seen last are kept, up to `keep_bytes`. `prepared` is where a large graph
    is kept in the form that this machine loads fastest.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        options: VisionOptions | None = None,
        *,
        keep_bytes: int = 0,
        prepared: PreparedGraphs | None = None,
    ):
        self._tiling = manifest.tiling
        self._flag = Cancellation()
        self._seen = RecentArrays(keep_bytes)
        opened = open_session(path, manifest, options or VisionOptions(), prepared)
        self._session: Any = opened.session
        self.device, self._format = opened.device, opened.format
        """A GPU, or None for the processor, and the number format of the graph there."""
        expected = (manifest.image_prompt.tokens_per_tile, manifest.decoder.hidden_size)
        found = tuple(self._session.get_outputs()[0].shape[1:])
        if found != expected:
            raise BundleError(
                f"{path} does not belong to this bundle: it makes embeddings of {found}, the manifest says {expected}"
            )

    def close(self) -> None:
        """Free the session; the encoder cannot be used afterwards."""
        self._session = None
        self._seen = RecentArrays(0)

    @property
    def provider(self) -> str:
        """Which of ONNX Runtime's execution providers runs the graph."""
        return str(self._session.get_providers()[0]) if self._session else ""

    @property
    def place(self) -> str:
        """What the graph runs on, with its number format: `cpu, int8`, `webgpu:0, fp16`."""
        return f"{self.device.name if self.device else 'cpu'}, {self._format}"

    @property
    def identity(self) -> bytes:
        """What decides about the embeddings beside the bundle and the pixels, for keys."""
        cpu = processor()
        facts = (self.provider, ort.library().__version__, cpu.name, sorted(cpu.features))
        on_gpu = (self.device, self._format) if self.device else ()
        return repr((*facts, *on_gpu)).encode()

    def watch(self, flag: Cancellation) -> None:
        """Let this flag end what is computed from now on, also inside a tile."""
        self._flag = flag

    def warm_up(self) -> None:
        """Run one empty tile: the first run after loading reads the weights from the disk."""
        size = self._tiling.tile_size
        self.run(np.zeros((1, 3, size, size), np.float32))

    def encode(
        self, tiles: NDArray[np.uint8], *, on_tile: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Image embeddings (n, T, hidden) float32 of tiles (n, S, S, 3) uint8.

        Tiles run one by one, which on a CPU is as fast as any batch and takes less memory; equal tiles are encoded
        once. `on_tile` is called with the number of tiles that are done, and of all.
        """
        done: dict[str, NDArray[np.float32]] = {}
        rows = []
        for number, tile in enumerate(tiles, 1):
            key = hashlib.sha256(tile.tobytes()).hexdigest()
            if key not in done:
                seen = self._seen.load(key)
                done[key] = self.run(normalize(tile[None], self._tiling))[0] if seen is None else seen
                self._seen.save(key, done[key])
            rows.append(done[key])
            if on_tile:
                on_tile(number, len(tiles))
        return np.stack(rows)

    def run(self, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The graph itself: normalised tiles (n, 3, S, S) to image embeddings (n, T, hidden).

        CancelledError between two operators if the flag is set that `watch` was given.
        """
        if self._session is None:
            raise ClosedError
        flag, settings = self._flag, ort.library().RunOptions()
        flag.check()
        end = partial(setattr, settings, "terminate", True)
        try:
            with flag.ending(end):
                inputs = {self._session.get_inputs()[0].name: pixel_values}
                (embeddings,) = interruptible(partial(self._session.run, None, inputs, settings), end)
        except Exception as error:
            flag.check()
            kind = OutOfMemoryError if _NO_MEMORY.search(str(error)) else BackendError
            raise kind(f"ONNX Runtime could not encode a tile: {error}") from error
        if not np.isfinite(embeddings).all():
            raise BackendError("the vision tower gave values that are not finite")
        return cast("NDArray[np.float32]", embeddings)


def open_encoder(
    bundle: Bundle, options: VisionOptions, *, keep_bytes: int = 0, prepared: PreparedGraphs | None = None
) -> VisionEncoder:
    """A bundle's encoder, warmed up; on the processor, with a warning, if a device that was not named fails."""
    encoder = VisionEncoder(
        bundle.vision_path, bundle.manifest, options, keep_bytes=keep_bytes, prepared=prepared
    )
    try:
        encoder.warm_up()
    except BackendError as error:
        encoder.close()
        if options.device not in (None, "auto"):
            raise
        logger.warning("the vision tower runs on the CPU: %s", error)
        return open_encoder(bundle, replace(options, device="cpu"), keep_bytes=keep_bytes, prepared=prepared)
    return encoder
