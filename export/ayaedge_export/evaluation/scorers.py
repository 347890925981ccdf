"""Models that give the logits of a window, a few positions at a time: a bundle, or a checkpoint in two ways."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import Bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import CacheType, DecoderOptions
from ayaedge.errors import BackendError
from ayaedge.hardware.machine import memory
from ayaedge.images.tiling import normalize
from ayaedge.manifest import Manifest
from ayaedge.vision.encoder import VisionEncoder
from ayaedge.vision.session import VisionOptions
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.decoder.forward import EMBEDDINGS, decoder_forward, head_logits
from ayaedge_export.evaluation.windows import IMAGES, Window, tiles_of
from ayaedge_export.vision.forward import vision_forward

FloatArray = NDArray[np.float32]

LOGIT_BYTES = 64 << 20
"""Logits that a scorer holds at once: 65 positions of Aya's 256,000 tokens. Two scorers and copies make 256 MB."""
MOST_POSITIONS = 512
"""Positions at once however few the tokens are."""


class Scorer(Protocol):
    """Gives logits of windows."""

    def prepare(self, windows: Sequence[Window]) -> None:
        """Do what several windows share; called before `parts` of any of them."""
        ...

    def parts(self, window: Window) -> Iterator[FloatArray]:
        """Logits (n, vocabulary) of each of `scored_ranges(window, vocabulary)`, in order."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


def scored_ranges(window: Window, vocabulary: int) -> list[tuple[int, int]]:
    """Ranges of a window's positions of which at least one is compared, each within `LOGIT_BYTES`."""
    return [r for r in window.ranges(positions_at_once(vocabulary)) if r[1] > window.first]


def positions_at_once(vocabulary: int) -> int:
    """How many positions' logits are held at a time."""
    return max(1, min(MOST_POSITIONS, LOGIT_BYTES // (4 * vocabulary)))


class BundleScorer:
    """A bundle through ONNX Runtime and llama.cpp, as the runtime uses it."""

    def __init__(
        self, bundle: Bundle, *, context_size: int, cache_type: CacheType = "f16", threads: int | None = None
    ):
        self._manifest = bundle.manifest
        self._vision = VisionEncoder(bundle.vision_path, self._manifest, VisionOptions(threads=threads))
        options = DecoderOptions(
            context_size=context_size,
            threads=threads,
            batch_size=positions_at_once(self._manifest.decoder.vocab_size),
            cache_type=cache_type,
            all_logits=True,
        )
        self._decoder = Decoder(bundle.decoder_path, self._manifest, options)
        self._features: dict[int, FloatArray] = {}

    def close(self) -> None:
        """Free both halves."""
        self._vision.close()
        self._decoder.close()

    def prepare(self, windows: Sequence[Window]) -> None:
        """Encode the images that were not met before."""
        self._features = _still_needed(self._features, windows)
        for number, window in _with_images(windows, self._features):
            self._features[number] = self._vision.encode(tiles_of(window, self._manifest))

    def parts(self, window: Window) -> Iterator[FloatArray]:
        """See `Scorer.parts`."""
        self._decoder.clear()
        rows = _input_rows(window, self._decoder.embed, self._features, self._manifest.tokens.image_patch)
        for start, stop in window.ranges(self._decoder.options.batch_size):
            if window.in_image(start):
                self._decoder.decode_embeddings(rows[start:stop])
            else:
                self._decoder.decode_tokens(window.prompt.ids[start:stop])
            if stop > window.first:
                yield self._decoder.logits()


class StreamedScorer:
    """A checkpoint of any size in float32, read layer by layer: needs no extra and a few hundred megabytes.

    `prepare` takes the windows through the decoder together, so each weight is read once for all of them.
    """

    def __init__(self, checkpoint: Checkpoint, manifest: Manifest):
        self._text, self._tensors = checkpoint.config.text, checkpoint.tensors
        self._vision, self._manifest = checkpoint.config.vision, manifest
        self._features: dict[int, FloatArray] = {}
        self._hidden: dict[str, FloatArray] = {}

    def close(self) -> None:
        """Forget all states."""
        self._hidden.clear()

    def prepare(self, windows: Sequence[Window]) -> None:
        """Compute the final hidden states of these windows, and forget those of others."""
        self._features = _still_needed(self._features, windows)
        for number, window in _with_images(windows, self._features):
            pixels = normalize(tiles_of(window, self._manifest), self._manifest.tiling)
            self._features[number] = vision_forward(self._vision, self._tensors.read, pixels)
        patch = self._manifest.tokens.image_patch
        rows = [_input_rows(window, self._embed, self._features, patch) for window in windows]
        hidden = decoder_forward(self._text, self._tensors, rows)
        ends = np.cumsum([len(part) for part in rows])
        self._hidden = {w.key: part for w, part in zip(windows, np.split(hidden, ends[:-1]), strict=True)}

    def parts(self, window: Window) -> Iterator[FloatArray]:
        """See `Scorer.parts`."""
        hidden = self._hidden[window.key]
        for start, stop in scored_ranges(window, self._text.vocab_size):
            yield head_logits(self._text, self._tensors, hidden[start:stop])

    def _embed(self, ids: Sequence[int]) -> FloatArray:
        name = f"{EMBEDDINGS}.weight"
        return np.concatenate([self._tensors.read_rows(name, token, token + 1) for token in ids])


class TransformersScorer:
    """A checkpoint in transformers, float32, wholly in memory. Needs the extra `trace`."""

    def __init__(self, checkpoint: Checkpoint, manifest: Manifest):
        from ayaedge_export.evaluation.reference import Reference

        check_memory(4 * checkpoint.parameters)
        self._reference = Reference.of(checkpoint)
        self._manifest = manifest

    def close(self) -> None:
        """Let go of the model."""
        del self._reference

    def prepare(self, windows: Sequence[Window]) -> None:
        """Nothing is shared."""

    def parts(self, window: Window) -> Iterator[FloatArray]:
        """See `Scorer.parts`."""
        pixels = None
        if window.image is not None:
            pixels = normalize(tiles_of(window, self._manifest), self._manifest.tiling)
        ranges = scored_ranges(window, self._manifest.decoder.vocab_size)
        yield from self._reference.logit_parts(window.prompt.ids, ranges, pixels)


def _with_images(windows: Sequence[Window], known: Collection[int]) -> list[tuple[int, Window]]:
    """A window for each image that is not known yet, by its number."""
    return sorted(
        {
            window.image: window
            for window in windows
            if window.image is not None and window.image not in known
        }.items()
    )


def _still_needed(features: dict[int, FloatArray], windows: Sequence[Window]) -> dict[int, FloatArray]:
    """Embeddings of these windows' images, and of the few that are drawn: those of a data set would fill the memory."""
    needed = {window.image for window in windows}
    return {number: rows for number, rows in features.items() if number < IMAGES or number in needed}


def check_memory(needed: int, *, total: int | None = None) -> None:
    """Raise BackendError if the machine's memory (bytes) cannot hold a whole model of `needed` bytes."""
    total = total or memory().total
    if needed > total:
        raise BackendError(
            f"the checkpoint takes {needed / 1e9:.0f} GB as float32 and this machine has {total / 1e9:.0f} GB; "
            'compare with it layer by layer instead (through="layers")'
        )


def _input_rows(
    window: Window,
    embed: Callable[[Sequence[int]], FloatArray],
    features: dict[int, FloatArray],
    patch: int,
) -> FloatArray:
    """What the decoder reads at each position, (n, hidden): token embeddings, and the image's in their places."""
    rows = embed(window.prompt.ids)
    if window.image is not None:
        # (tiles, T, hidden) -> (tiles * T, hidden)
        rows[np.asarray(window.prompt.ids) == patch] = features[window.image].reshape(-1, rows.shape[1])
    return rows
