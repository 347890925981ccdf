"""The texts and images that the effort `best` looks at."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ayaedge.manifest import EmbeddingTable, Formats
from ayaedge_export.calibration.sequences import (
    IMAGE_WEIGHT,
    SMALLEST_BUDGET,
    CalibrationSequence,
    FloatArray,
    calibration_sequences,
    checkpoint_vocabulary,
    embed,
    text_sequences,
)
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.effort import MAX_TOKENS
from ayaedge_export.manifest import describe

logger = logging.getLogger("ayaedge.calibration")


_SHORTEST_PROBE = 4


@dataclass(frozen=True)
class BestPassages:
    """What `best` reads."""

    rounding: Passages
    """What is rounded on."""
    sensitivity: Passages
    """What losses are measured on."""
    probes: Passages
    """The beginnings of all languages' texts, which sensitivities are measured on."""
    text: CalibrationText
    """What they are taken from."""


def calibration_passages(
    checkpoint: Checkpoint,
    text: CalibrationText = BUILTIN,
    *,
    image_weight: float = IMAGE_WEIGHT,
    max_tokens: int = MAX_TOKENS,
    sensitivity_tokens: int,
    probe_tokens: int,
) -> BestPassages:
    """At most so many positions of each kind, but some for each language; see `calibration_sequences`.

    A text with less than half of `max_tokens` gets the builtin text next to it: few positions tell nothing of most
    directions that a linear's input can take, and rounding errors would be moved there.
    """
    manifest = describe(checkpoint, EmbeddingTable("F32", 0, 0), Formats("fp32", "f32"))
    with checkpoint_vocabulary(checkpoint) as vocabulary:
        text = _long_enough(text, vocabulary.tokenize, manifest.tokens.bos, max_tokens // 2)
        least = SMALLEST_BUDGET * len(text.passages)
        whole, measured = (
            calibration_sequences(
                manifest, vocabulary.tokenize, text, image_weight=image_weight, max_tokens=max(tokens, least)
            )
            for tokens in (max_tokens, sensitivity_tokens)
        )
        share = max(_SHORTEST_PROBE, probe_tokens // len(text.passages))
        starts = [
            ids
            for passages in text.passages.values()
            for ids in text_sequences(vocabulary.tokenize, manifest.tokens.bos, passages, share)
        ]
    probes = [CalibrationSequence(ids, np.ones(len(ids), np.float32)) for ids in starts]
    # images are encoded once for all
    rows = embed(checkpoint, [*whole, *measured, *probes], manifest.tokens.image_patch)
    first, second = len(whole), len(whole) + len(measured)
    return BestPassages(
        _passages(whole, rows[:first], manifest.tokens.image_patch),
        _passages(measured, rows[first:second], manifest.tokens.image_patch),
        _passages(probes, rows[second:], manifest.tokens.image_patch),
        text,
    )


def _long_enough(
    text: CalibrationText, tokenize: Callable[[str], list[int]], bos: int, positions: int
) -> CalibrationText:
    """`text`, with the builtin text next to it if it has fewer positions."""
    found = 0
    for passages in text.passages.values():
        found += sum(map(len, text_sequences(tokenize, bos, passages, positions)))
    if found >= positions or text is BUILTIN:
        return text
    logger.warning(
        "%s has %d tokens, and %d are needed for it alone: the builtin text is read as well",
        text.name, found, positions,
    )  # fmt: skip
    both = {
        language: (*text.passages.get(language, ()), *BUILTIN.passages.get(language, ()))
        for language in dict.fromkeys((*text.passages, *BUILTIN.passages))
    }
    return CalibrationText(f"{text.name} and {BUILTIN.name}", both)


def _passages(sequences: Sequence[CalibrationSequence], rows: Sequence[FloatArray], patch: int) -> Passages:
    ids = np.concatenate([np.asarray(sequence.ids, np.int64) for sequence in sequences])
    ids[ids == patch] = -1
    return Passages(rows, ids, np.concatenate([sequence.weights for sequence in sequences]))


@dataclass(frozen=True)
class Passages:
    """Embedded sequences for the decoder."""

    rows: Sequence[FloatArray]
    """Of each sequence (positions, hidden)."""
    ids: NDArray[np.int64]
    """Token of each position of all sequences; -1 where an image's embedding stands."""
    weights: FloatArray
    """What each position counts."""

    @property
    def lengths(self) -> list[int]:
        """Positions of each sequence."""
        return [len(rows) for rows in self.rows]
