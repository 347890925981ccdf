"""Collecting an importance matrix: which columns of which linear of the decoder matter, on text and on pictures.

Two ways, with the same sequences and the same weights: from a checkpoint, layer by layer in numpy, and from a
finished bundle, through llama.cpp. Both watch the tied output head too, which `llama-imatrix` does not.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import Bundle, EmbeddingTable, Formats, Manifest
from ayaedge.decoder.decoder import DecoderOptions, Vocabulary, open_vocabulary
from ayaedge.errors import BackendError, CheckpointError, InvalidOptionError, list_faults
from ayaedge.images.tiling import normalize, split_tiles
from ayaedge.text.prompt import Message, PromptBuilder
from ayaedge.vision.encoder import VisionEncoder
from ayaedge_export.best.sensitivity import Passages
from ayaedge_export.calibration.observed_decoder import ObservedDecoder
from ayaedge_export.calibration.text import BUILTIN, CalibrationText
from ayaedge_export.checkpoint.checkpoint import Checkpoint, text_tensors
from ayaedge_export.checkpoint.config import TextConfig
from ayaedge_export.decoder.forward import EMBEDDINGS, decoder_forward
from ayaedge_export.decoder.gguf_writer import ARCHITECTURES, add_tokenizer, gguf_name
from ayaedge_export.effort import MAX_TOKENS
from ayaedge_export.exporter import describe
from ayaedge_export.product_threads import bounded_products
from ayaedge_export.vision.forward import vision_forward
from ayaedge_export.vision.int8 import calibration_tiles
from ayaedge_quant.imatrix import ImportanceMatrix, SquareSums, read_imatrix

logger = logging.getLogger("ayaedge.calibration")

FloatArray = NDArray[np.float32]
OnStep = Callable[[int, int], None]
"""Called with the number of steps that are done, and of all."""

IMAGE_WEIGHT = 0.2
"""What an image position counts against one of text. Text is more than 10 times as sensitive to rounding (MBQ, CVPR
2025, arXiv 2412.19509); with equal weights the many image positions would take the bits that text needs."""
SEQUENCE_TOKENS = 512
"""Longest sequence of text: what llama-imatrix takes by default."""
_SMALLEST_BUDGET = 64
"""Positions for each language."""
_QUESTION = 200
"""Characters of a passage that are asked about a picture, at most."""
_SHORTEST_PROBE = 4
_TILES = 8
"""Tiles that are encoded at once, which bounds the memory for their activations."""
_PROBES = 64
"""Positions computed at once in llama.cpp, where every one of them has logits: 64 MB for 256,000 tokens."""


@dataclass(frozen=True)
class CalibrationSequence:
    """One sequence that goes through the decoder."""

    ids: tuple[int, ...]
    weights: FloatArray
    """What each position counts, (len(ids),)."""
    tiles: NDArray[np.uint8] | None = None
    """Tiles (n, S, S, 3) of the picture whose embeddings stand at the image tokens."""


def collect(
    checkpoint: Checkpoint,
    text: CalibrationText = BUILTIN,
    *,
    image_weight: float = IMAGE_WEIGHT,
    max_tokens: int = MAX_TOKENS,
    on_step: OnStep | None = None,
) -> ImportanceMatrix:
    """Mean squared inputs of every linear of a checkpoint's decoder, computed in float32, layer by layer.

    Every language counts the same, whatever its number of tokens; `image_weight` 0 leaves pictures out. Peak memory
    is one matrix and about 5 arrays of (positions, hidden) in float32: 1 GB for the 8B and the builtin text.
    Raises CheckpointError if activations are not finite, InvalidOptionError for values that make no sense.
    """
    config = checkpoint.config
    manifest = describe(checkpoint, EmbeddingTable("F32", 0, 0), Formats("fp32", "f32"))
    with checkpoint_vocabulary(checkpoint) as vocabulary:
        sequences = calibration_sequences(
            manifest, vocabulary.tokenize, text, image_weight=image_weight, max_tokens=max_tokens
        )
    position_weights = np.concatenate([sequence.weights for sequence in sequences])
    widths = _widths(config.text)
    sums, layers = SquareSums(), iter(range(1, config.text.num_layers + 1))

    def observe(name: str, column: int, x: FloatArray) -> None:
        tensor = gguf_name(f"{name}.weight")
        sums.add(tensor, x, position_weights, first_column=column, columns=widths[tensor])

    def layer_done(_: int) -> None:
        if on_step:
            on_step(next(layers), config.text.num_layers)

    with bounded_products(config.text.hidden_size):
        embedded = _embed(checkpoint, sequences, manifest.tokens.image_patch)
        decoder_forward(config.text, checkpoint.tensors, embedded, observe, advance=layer_done)
    try:
        return sums.matrix((text.name,), chunk_size=SEQUENCE_TOKENS)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint {checkpoint.directory}: {error}") from None


def collect_from_bundle(
    bundle: Bundle,
    text: CalibrationText = BUILTIN,
    *,
    image_weight: float = IMAGE_WEIGHT,
    max_tokens: int = MAX_TOKENS,
    options: DecoderOptions | None = None,
    on_step: OnStep | None = None,
) -> ImportanceMatrix:
    """What `collect` gives, from a bundle through llama.cpp: faster, and as exact as the bundle's formats are.

    Of `options`, threads, cache type and layers on a GPU are heeded. Raises BackendError if this build of llama.cpp
    cannot be watched, InvalidOptionError for values that make no sense.
    """
    given = options or DecoderOptions()
    if given.gpu_layers:
        raise InvalidOptionError("calibration reads llama.cpp's main memory: leave gpu_layers at 0")
    sums = SquareSums()
    current: list[FloatArray] = []

    def observe(name: str, x: FloatArray) -> None:
        start = decoder.position
        sums.add(name, x, current[0][start : start + len(x)])

    settings = DecoderOptions(
        threads=given.threads, cache_type=given.cache_type, batch_size=_PROBES, all_logits=True
    )
    with ObservedDecoder(bundle, observe, settings) as decoder:
        sequences = calibration_sequences(
            bundle.manifest,
            decoder.vocabulary.tokenize,
            text,
            image_weight=image_weight,
            max_tokens=max_tokens,
        )
        pictures = _encode_pictures(bundle, sequences)
        for number, (sequence, picture) in enumerate(zip(sequences, pictures, strict=True), 1):
            rows = decoder.embed(sequence.ids)
            if picture is not None:
                rows[np.asarray(sequence.ids) == bundle.manifest.tokens.image_patch] = picture
            current[:] = [sequence.weights]
            decoder.clear()
            decoder.decode_embeddings(rows)
            if on_step:
                on_step(number, len(sequences))
    matrix = sums.matrix((text.name,), chunk_size=SEQUENCE_TOKENS)
    _check_all_seen(matrix, bundle.manifest.decoder.num_layers)
    return matrix


@dataclass(frozen=True)
class BestPassages:
    """What `best` reads."""

    rounding: Passages
    """What is rounded on."""
    survey: Passages
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
    survey_tokens: int,
    probe_tokens: int,
) -> BestPassages:
    """At most so many positions of each kind, but some for each language; see `calibration_sequences`.

    A text with less than half of `max_tokens` gets the builtin text beside it: few positions tell nothing of most
    directions that a linear's input can take, and rounding errors would be moved there.
    """
    manifest = describe(checkpoint, EmbeddingTable("F32", 0, 0), Formats("fp32", "f32"))
    with checkpoint_vocabulary(checkpoint) as vocabulary:
        text = _long_enough(text, vocabulary.tokenize, manifest.tokens.bos, max_tokens // 2)
        least = _SMALLEST_BUDGET * len(text.passages)
        whole, measured = (
            calibration_sequences(
                manifest, vocabulary.tokenize, text, image_weight=image_weight, max_tokens=max(tokens, least)
            )
            for tokens in (max_tokens, survey_tokens)
        )
        share = max(_SHORTEST_PROBE, probe_tokens // len(text.passages))
        starts = [
            ids
            for passages in text.passages.values()
            for ids in _text_sequences(vocabulary.tokenize, manifest.tokens.bos, passages, share)
        ]
    probes = [CalibrationSequence(ids, np.ones(len(ids), np.float32)) for ids in starts]
    # pictures are encoded once for all
    rows = _embed(checkpoint, [*whole, *measured, *probes], manifest.tokens.image_patch)
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
    """`text`, with the builtin text beside it if it has fewer positions."""
    found = 0
    for passages in text.passages.values():
        found += sum(map(len, _text_sequences(tokenize, bos, passages, positions)))
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


def load_importance(path: str | Path, text: TextConfig) -> ImportanceMatrix:
    """Read an importance matrix for a decoder; InvalidOptionError lists all that does not fit.

    Linears that it lacks (llama-imatrix leaves out the tied head) are named in the log; they are encoded without.
    """
    try:
        matrix = read_imatrix(path)
    except OSError as error:
        raise InvalidOptionError(f"the importance matrix {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InvalidOptionError(str(error)) from None
    widths = _widths(text)
    faults = [
        f"it has {name}, which this decoder does not have" for name in matrix.entries if name not in widths
    ]
    faults += [
        f"{name} has {len(entry.sums)} columns instead of {widths[name]}"
        for name, entry in matrix.entries.items()
        if len(entry.sums) != widths.get(name, len(entry.sums))
    ]
    if faults:
        raise InvalidOptionError(list_faults(f"{path} is the importance matrix of another model", faults))
    if missing := sorted(set(widths) - set(matrix.entries)):
        logger.warning("%s has nothing on %s; encoding them without", path, ", ".join(missing))
    return matrix


def calibration_sequences(
    manifest: Manifest,
    tokenize: Callable[[str], list[int]],
    text: CalibrationText,
    *,
    image_weight: float = IMAGE_WEIGHT,
    max_tokens: int = MAX_TOKENS,
) -> list[CalibrationSequence]:
    """Sequences of at most `max_tokens` positions in all: conversations about pictures, then text by language.

    The positions of each language have the same total weight, and so have all words of the conversations together
    (system preamble, questions); a position of text weighs 1 on average, one of a picture `image_weight`.
    """
    if not 0 <= image_weight <= 1:
        raise InvalidOptionError(f"the weight of a picture must lie between 0 and 1, not {image_weight}")
    if max_tokens < (least := _SMALLEST_BUDGET * len(text.passages)):
        raise InvalidOptionError(
            f"{max_tokens} positions are too few for {len(text.passages)} languages: give at least {least}"
        )
    builder = PromptBuilder(manifest, tokenize)
    pictures = _picture_prompts(manifest, builder, text, max_tokens // 2) if image_weight else []
    share = (max_tokens - sum(len(ids) for ids, _, _ in pictures)) // len(text.passages)
    texts = {
        language: _text_sequences(tokenize, manifest.tokens.bos, passages, share)
        for language, passages in text.passages.items()
    }
    sizes = [sum(map(len, parts)) for parts in texts.values()]
    spoken = sum(int((~inside).sum()) for _, inside, _ in pictures)
    groups = [size for size in (*sizes, spoken) if size]
    of_group = sum(groups) / len(groups)
    sequences = []
    for ids, inside, tiles in pictures:
        weights = np.where(inside, image_weight, of_group / max(1, spoken)).astype(np.float32)
        sequences.append(CalibrationSequence(ids, weights, tiles))
    for size, parts in zip(sizes, texts.values(), strict=True):
        for part in parts:
            sequences.append(CalibrationSequence(part, np.full(len(part), of_group / size, np.float32)))
    return sequences


def _check_all_seen(matrix: ImportanceMatrix, num_layers: int) -> None:
    linears = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    expected = {f"blk.{layer}.{linear}.weight" for layer in range(num_layers) for linear in linears}
    if unseen := (expected | {"token_embd.weight"}) - set(matrix.entries):
        raise BackendError(f"llama.cpp did not show the inputs of {', '.join(sorted(unseen))}")


@contextmanager
def checkpoint_vocabulary(checkpoint: Checkpoint) -> Iterator[Vocabulary]:
    """The checkpoint's tokenizer in llama.cpp, from a temporary GGUF file that holds nothing else."""
    text = checkpoint.config.text
    with TemporaryDirectory() as directory:
        path = Path(directory, "vocabulary.gguf")
        writer = gguf.GGUFWriter(path, ARCHITECTURES[text.model_type])
        add_tokenizer(writer, checkpoint.tokenizer, text.vocab_size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with open_vocabulary(path) as vocabulary:
            yield vocabulary


_PicturePrompt = tuple[tuple[int, ...], NDArray[np.bool_], NDArray[np.uint8]]
"""Token ids, which of them lie inside the picture, and its tiles."""


def _picture_prompts(
    manifest: Manifest, builder: PromptBuilder, text: CalibrationText, budget: int
) -> list[_PicturePrompt]:
    """Conversations about drawn pictures of 2 x 2 tiles, as many as fit into `budget` positions."""
    drawn = calibration_tiles(2 * manifest.tiling.tile_size)
    pictures = np.rint((drawn.transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
    languages = list(text.passages)
    prompts: list[_PicturePrompt] = []
    for number, picture in enumerate(pictures):
        tiles = split_tiles(picture, manifest.tiling)
        question = text.passages[languages[number * len(languages) // len(pictures)]][-1][:_QUESTION]
        prompt = builder.build([Message("user", question, 1)], [len(tiles)])
        inside = np.zeros(len(prompt.ids), bool)
        for span in prompt.images:
            inside[span.start : span.stop] = True
        budget -= len(prompt.ids)
        if budget < 0:
            logger.warning("%d of %d pictures fit into the number of positions", number, len(pictures))
            break
        prompts.append((prompt.ids, inside, tiles))
    return prompts


def _text_sequences(
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


def _embed(checkpoint: Checkpoint, sequences: Sequence[CalibrationSequence], patch: int) -> list[FloatArray]:
    """The decoder's input for each sequence, (positions, hidden)."""
    tensors, config = checkpoint.tensors, checkpoint.config
    used = sorted({token for sequence in sequences for token in sequence.ids})
    table = {token: tensors.read_rows(f"{EMBEDDINGS}.weight", token, token + 1)[0] for token in used}
    embedded = [np.stack([table[token] for token in sequence.ids]) for sequence in sequences]
    # some sequences have the same picture, which is encoded once
    pictures = [sequence.tiles for sequence in sequences if sequence.tiles is not None]
    tiles = {tile.tobytes(): tile for picture in pictures for tile in picture}
    if not tiles:
        return embedded
    pixels = normalize(np.stack(list(tiles.values())), checkpoint.tiling)
    parts = np.array_split(pixels, -(-len(pixels) // _TILES))
    encoded = [vision_forward(config.vision, tensors.read, part) for part in parts]
    images = dict(zip(tiles, np.concatenate(encoded), strict=True))
    for sequence, rows in zip(sequences, embedded, strict=True):
        if sequence.tiles is not None:
            picture = np.stack([images[tile.tobytes()] for tile in sequence.tiles])
            rows[np.asarray(sequence.ids) == patch] = picture.reshape(-1, rows.shape[1])
    return embedded


def _encode_pictures(bundle: Bundle, sequences: Sequence[CalibrationSequence]) -> list[FloatArray | None]:
    """The image embeddings (image tokens, hidden) of each sequence that has a picture."""
    encoder = VisionEncoder(bundle.vision_path, bundle.manifest)
    try:
        return [
            None
            if sequence.tiles is None
            else encoder.encode(sequence.tiles).reshape(-1, bundle.manifest.decoder.hidden_size)
            for sequence in sequences
        ]
    finally:
        encoder.close()


def _widths(text: TextConfig) -> Mapping[str, int]:
    """Columns of every linear, by its name in the GGUF file."""
    return {
        gguf_name(name): shape[1]
        for name, shape in text_tensors(text).items()
        if not name.endswith("norm.weight")
    }
