"""The vision tower and connector: normalised tiles in, image embeddings out, through ONNX Runtime."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import Manifest
from ayaedge.decoder import MAX_THREADS, available_cores
from ayaedge.errors import AyaEdgeError, BackendError, BundleError, check_options, whole_number
from ayaedge.states import RecentArrays
from ayaedge.tiling import normalize

Device = Literal["cpu"]


@dataclass(frozen=True)
class VisionOptions:
    """How the vision tower runs; None means the machine's value."""

    threads: int | None = None
    device: Device = "cpu"
    verbose: bool = False
    """Let ONNX Runtime write its own messages to stderr."""

    def __post_init__(self) -> None:
        unknown = self.device not in get_args(Device)
        check_options(
            whole_number("threads", self.threads, least=1, most=MAX_THREADS, optional=True),
            f"device must be one of {', '.join(get_args(Device))}, not {self.device!r}" if unknown else None,
        )


class VisionEncoder:
    """One ONNX Runtime session. `close()` frees it.

    The embeddings of the tiles that were seen last are kept, up to `keep_bytes`.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        options: VisionOptions | None = None,
        *,
        keep_bytes: int = 0,
    ):
        self._tiling = manifest.tiling
        self._seen = RecentArrays(keep_bytes)
        self._session: Any = _make_session(path, options or VisionOptions())
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
        """The graph itself: normalised tiles (n, 3, S, S) to image embeddings (n, T, hidden)."""
        if self._session is None:
            raise AyaEdgeError("this model is closed")
        try:
            (embeddings,) = self._session.run(None, {self._session.get_inputs()[0].name: pixel_values})
        except Exception as error:
            raise BackendError(f"ONNX Runtime could not encode a tile: {error}") from error
        if not np.isfinite(embeddings).all():
            raise BackendError("the vision tower gave values that are not finite")
        return cast("NDArray[np.float32]", embeddings)


def _make_session(path: Path, options: VisionOptions) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 1 if options.verbose else 4
    settings.intra_op_num_threads = options.threads or available_cores()
    # Waiting threads must not spin: the decoder needs the processor as soon as the last tile is done.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(os.fspath(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleError(f"ONNX Runtime cannot load {path}: {error}") from error
