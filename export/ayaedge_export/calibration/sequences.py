"""Token sequences and images that calibration looks at."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from ayaedge.decoder.vocabulary import Vocabulary, open_vocabulary
from ayaedge.errors import InvalidOptionError
from ayaedge.images.tiling import normalize, split_tiles
from ayaedge.manifest import Manifest
from ayaedge.text.prompt import Message, PromptBuilder
from ayaedge_export.calibration.text import CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.decoder.forward import EMBEDDINGS
from ayaedge_export.decoder.gguf_writer import ARCHITECTURES, MetadataWriter, add_tokenizer
from ayaedge_export.effort import MAX_TOKENS
from ayaedge_export.vision.drawn_images import calibration_tiles
from ayaedge_export.vision.forward import vision_forward

logger = logging.getLogger("ayaedge.calibration")


FloatArray = NDArray[np.float32]


IMAGE_WEIGHT = 0.2
"""What an image position counts against one of text. Text is more than 10 times as sensitive to rounding (MBQ, CVPR
2025, arXiv 2412.19509); with equal weights the many image positions would take the bits that text needs."""


SEQUENCE_TOKENS = 512
"""Longest sequence of text: what llama-imatrix takes by default."""


SMALLEST_BUDGET = 64
"""Positions for each language."""


_QUESTION = 200
"""Characters of a passage that are asked about an image, at most."""


_TILES = 8
"""Tiles that are encoded at once, which bounds the memory for their activations."""


@dataclass(frozen=True)
class CalibrationSequence:
    """One sequence that goes through the decoder."""

    ids: tuple[int, ...]
    weights: FloatArray
    """What each position counts, (len(ids),)."""
    tiles: NDArray[np.uint8] | None = None
    """Tiles (n, S, S, 3) of the image whose embeddings stand at the image tokens."""


def calibration_sequences(
    manifest: Manifest,
    tokenize: Callable[[str], list[int]],
    text: CalibrationText,
    *,
    image_weight: float = IMAGE_WEIGHT,
    max_tokens: int = MAX_TOKENS,
) -> list[CalibrationSequence]:
    """Sequences of at most `max_tokens` positions in all: conversations about images, then text by language.

    The positions of each language have the same total weight, and so have all words of the conversations together
    (system preamble, questions); a position of text weighs 1 on average, one of an image `image_weight`.
    """
    if not 0 <= image_weight <= 1:
        raise InvalidOptionError(f"the weight of an image must lie between 0 and 1, not {image_weight}")
    if max_tokens < (least := SMALLEST_BUDGET * len(text.passages)):
        raise InvalidOptionError(
            f"{max_tokens} positions are too few for {len(text.passages)} languages: give at least {least}"
        )
    builder = PromptBuilder(manifest, tokenize)
    images = _image_prompts(manifest, builder, text, max_tokens // 2) if image_weight else []
    share = (max_tokens - sum(len(ids) for ids, _, _ in images)) // len(text.passages)
    texts = {
        language: text_sequences(tokenize, manifest.tokens.bos, passages, share)
        for language, passages in text.passages.items()
    }
    sizes = [sum(map(len, parts)) for parts in texts.values()]
    spoken = sum(int((~inside).sum()) for _, inside, _ in images)
    groups = [size for size in (*sizes, spoken) if size]
    of_group = sum(groups) / len(groups)
    sequences = []
    for ids, inside, tiles in images:
        weights = np.where(inside, image_weight, of_group / max(1, spoken)).astype(np.float32)
        sequences.append(CalibrationSequence(ids, weights, tiles))
    for size, parts in zip(sizes, texts.values(), strict=True):
        for part in parts:
            sequences.append(CalibrationSequence(part, np.full(len(part), of_group / size, np.float32)))
    return sequences


@contextmanager
def checkpoint_vocabulary(checkpoint: Checkpoint) -> Iterator[Vocabulary]:
    """The checkpoint's tokenizer in llama.cpp, from a temporary GGUF file that holds nothing else."""
    text = checkpoint.config.text
    with TemporaryDirectory() as directory:
        path = Path(directory, "vocabulary.gguf")
        writer = MetadataWriter(path, ARCHITECTURES[text.model_type])
        add_tokenizer(writer, checkpoint.tokenizer, text.vocab_size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with open_vocabulary(path) as vocabulary:
            yield vocabulary


_ImagePromptTokens = tuple[tuple[int, ...], NDArray[np.bool_], NDArray[np.uint8]]
"""Token ids, which of them lie inside the image, and its tiles."""


def _image_prompts(
    manifest: Manifest, builder: PromptBuilder, text: CalibrationText, budget: int
) -> list[_ImagePromptTokens]:
    """Conversations about drawn images of 2 x 2 tiles, as many as fit into `budget` positions."""
    drawn = calibration_tiles(2 * manifest.tiling.tile_size)
    images = np.rint((drawn.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
    languages = list(text.passages)
    prompts: list[_ImagePromptTokens] = []
    for number, image in enumerate(images):
        tiles = split_tiles(image, manifest.tiling)
        question = text.passages[languages[number * len(languages) // len(images)]][-1][:_QUESTION]
        prompt = builder.build([Message("user", question, 1)], [len(tiles)])
        inside = np.zeros(len(prompt.ids), bool)
        for span in prompt.images:
            inside[span.start : span.stop] = True
        budget -= len(prompt.ids)
        if budget < 0:
            logger.warning("%d of %d images fit into the number of positions", number, len(images))
            break
        prompts.append((prompt.ids, inside, tiles))
    return prompts


def text_sequences(
    tokenize: Callable[[str], list[int]], bos: int, passages: Sequence[str], budget: int
) -> list[tuple[int, ...]]:
    """Passages, a line each, in sequences that begin with the token `bos`: at most `budget` positions in all."""
    sequences: list[tuple[int, ...]] = []
    ids: list[int] = []
    for passage in passages:
        ids += tokenize(unicodedata.normalize("NFC", passage + "\n"))
        while len(ids) >= SEQUENCE_TOKENS - 1 and budget > 1:
            sequences.append((bos, *ids[: min(SEQUENCE_TOKENS, budget) - 1]))
            del ids[: SEQUENCE_TOKENS - 1]
            budget -= len(sequences[-1])
        if budget <= 1:
            return sequences
    return [*sequences, (bos, *ids[: budget - 1])] if ids else sequences


def embed(checkpoint: Checkpoint, sequences: Sequence[CalibrationSequence], patch: int) -> list[FloatArray]:
    """The decoder's input for each sequence, (positions, hidden)."""
    tensors, config = checkpoint.tensors, checkpoint.config
    used = sorted({token for sequence in sequences for token in sequence.ids})
    table = {token: tensors.read_rows(f"{EMBEDDINGS}.weight", token, token + 1)[0] for token in used}
    embedded = [np.stack([table[token] for token in sequence.ids]) for sequence in sequences]
    # some sequences have the same image, which is encoded once
    images = [sequence.tiles for sequence in sequences if sequence.tiles is not None]
    tiles = {tile.tobytes(): tile for image in images for tile in image}
    if not tiles:
        return embedded
    pixels = normalize(np.stack(list(tiles.values())), checkpoint.tiling)
    parts = np.array_split(pixels, -(-len(pixels) // _TILES))
    encoded = [vision_forward(config.vision, tensors.read, part) for part in parts]
    of_tile = dict(zip(tiles, np.concatenate(encoded), strict=True))
    for sequence, rows in zip(sequences, embedded, strict=True):
        if sequence.tiles is not None:
            image = np.stack([of_tile[tile.tobytes()] for tile in sequence.tiles])
            rows[np.asarray(sequence.ids) == patch] = image.reshape(-1, rows.shape[1])
    return embedded
