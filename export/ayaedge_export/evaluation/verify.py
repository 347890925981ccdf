"""How near a bundle is to its checkpoint: every stage alone, against transformers, with a bar for each figure."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ayaedge import ort
from ayaedge.bundle import Bundle
from ayaedge.checks import check_options, instance
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import InvalidOptionError
from ayaedge.hardware.machine import usable_threads
from ayaedge.images.load import load_image
from ayaedge.images.tiling import normalize, split_tiles
from ayaedge.manifest import Manifest
from ayaedge.text.prompt import Message, Prompt, PromptBuilder
from ayaedge.vision.encoder import VisionEncoder
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.checkpoint.logit_scale import scaled_like
from ayaedge_export.evaluation.reference import Reference
from ayaedge_export.evaluation.sample_text import SENTENCES
from ayaedge_export.merge.merge import MergedCheckpoint
from ayaedge_export.resume.staged_bundle import replace_manifest
from ayaedge_export.vision.graph import write_vision_graph
from ayaedge_quant.kernels import kl_divergence

logger = logging.getLogger("ayaedge.verify")

FLOAT_VISION_ERROR = 1e-4
"""Largest error of a float graph, relative to the largest activation: rounding in another order, and room."""
TRACE_ERROR = 1e-5
"""Both routes to the float graph compute the same formula."""
VISION_ERROR = {"fp32": FLOAT_VISION_ERROR, "fp16": 5e-3, "int8-block": 0.03, "int8": 0.03}
"""Mean relative error of a token's embedding; bfloat16, the everyday choice, costs 0.016."""
VISION_COSINE = {"fp32": 0.999999, "fp16": 0.9999, "int8-block": 0.999, "int8": 0.999}
DECODER_KL = {"f32": 1e-5, "f16": 1e-3, "q8_0": 0.01, "q6_k": 0.03, "q5_k_m": 0.06, "q4_k_m": 0.15}
"""Mean KL divergence of the next token, nats. Published 4-bit files of 8B models lie near 0.03, small ones higher."""
DECODER_TOP1 = {"f32": 1.0, "f16": 0.99, "q8_0": 0.95, "q6_k": 0.93, "q5_k_m": 0.9, "q4_k_m": 0.85}
_IMAGES = ((1, 1), (4, 3), (1, 3), (9, 4))
_BEYOND_WINDOW = 64
"""Tokens by which the compared text exceeds the sliding window."""
_SHORTEST_TEXT = 256


@dataclass(frozen=True)
class Check:
    """One figure and what it must be."""

    name: str
    value: float
    bar: str
    passed: bool


@dataclass(frozen=True)
class Report:
    """All figures of one verification."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def verify_bundle(bundle: Bundle, against: Checkpoint | str | Path, *, trace: bool = False) -> Report:
    """Compare a bundle with a checkpoint, opened or by its directory, and write the figures into its manifest.

    Reads the whole checkpoint into memory as float32. With `trace` the vision graph built from the weights is also
    compared with the one that is traced from PyTorch. A bundle whose decoder was merged is compared with the
    checkpoint that `merge_like` gives. Raises CheckpointError, BundleError, MissingExtraError and InvalidOptionError.
    """
    check_options(instance("trace", trace, bool))
    checkpoint = against if isinstance(against, Checkpoint) else open_checkpoint(against)
    merge = bundle.manifest.source.merge
    if merge and not isinstance(checkpoint, MergedCheckpoint):
        raise InvalidOptionError(
            f"the decoder of {bundle.name} was merged with {merge.text}: name the merge base, so that the checkpoint "
            "is merged in the same way before both are compared"
        )
    checkpoint = scaled_like(checkpoint, bundle.manifest)
    checks: list[Check] = []
    if trace:
        checks.append(
            _at_most("vision graph, direct against traced", compare_routes(checkpoint), TRACE_ERROR)
        )
    reference = Reference.of(checkpoint)
    options = DecoderOptions(cache_type="f32", all_logits=True, context_size=_context(bundle))
    with Decoder(bundle.decoder_path, bundle.manifest, options) as decoder:
        checks += _check_all(bundle, checkpoint, reference, decoder)
    report = Report(tuple(checks))
    figures = {check.name: check.value for check in report.checks}
    try:
        replace_manifest(bundle.directory, replace(bundle.manifest, parity=figures))
    except OSError as error:  # a bundle that only others may change can be verified all the same
        logger.warning("the figures were not written into the manifest: %s", error)
    return report


def compare_routes(checkpoint: Checkpoint) -> float:
    """Largest difference between the direct and the traced float graph, relative to the largest activation."""
    from ayaedge_export.vision.trace import trace_vision_graph

    config, read = checkpoint.config.vision, checkpoint.tensors.read
    pixels = normalize(_tiles(checkpoint.tiling.tile_size), checkpoint.tiling)
    with TemporaryDirectory() as directory:
        direct, traced = Path(directory, "direct.onnx"), Path(directory, "traced.onnx")
        write_vision_graph(direct, config, read)
        trace_vision_graph(traced, config, read)
        return relative_to_largest(run_graph(direct, pixels), run_graph(traced, pixels))


def run_graph(path: Path, pixel_values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Image embeddings (n, T, hidden) of a vision graph outside a bundle."""
    settings = ort.library().SessionOptions()
    settings.intra_op_num_threads = usable_threads()
    session = ort.library().InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"pixel_values": pixel_values})[0])


def relative_to_largest(reference: NDArray[np.float32], candidate: NDArray[np.float32]) -> float:
    """Largest absolute difference over largest absolute reference value."""
    return float(np.abs(reference - candidate).max() / np.abs(reference).max())


def token_errors(
    reference: NDArray[np.float32], candidate: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Relative error |y - r| / |r| and cosine of each token, for embeddings (..., hidden)."""
    r = reference.reshape(-1, reference.shape[-1]).astype(np.float64)
    y = candidate.reshape(r.shape).astype(np.float64)
    norm = np.linalg.norm(r, axis=1)
    error = np.linalg.norm(y - r, axis=1) / norm
    return error, (r * y).sum(axis=1) / (norm * np.linalg.norm(y, axis=1))


def prompt_logits(
    decoder: Decoder, prompt: Prompt, embeddings: NDArray[np.float32] | None, patch: int
) -> NDArray[np.float32]:
    """Logits at every position of a prompt, (len(prompt.ids), vocabulary); needs `all_logits`."""
    decoder.clear()
    rows = decoder.embed(prompt.ids)
    if embeddings is not None:
        rows[np.asarray(prompt.ids) == patch] = embeddings.reshape(-1, rows.shape[1])
    in_image = np.zeros(len(rows), bool)
    for span in prompt.images:
        in_image[span.start : span.stop] = True
    parts = []
    for start, stop in _runs(in_image, decoder.options.batch_size):
        if in_image[start]:
            decoder.decode_embeddings(rows[start:stop])
        else:
            decoder.decode_tokens(prompt.ids[start:stop])
        parts.append(decoder.logits())
    return np.concatenate(parts)


def _check_all(
    bundle: Bundle, checkpoint: Checkpoint, reference: Reference, decoder: Decoder
) -> Iterator[Check]:
    manifest, texts = bundle.manifest, [token.text for token in checkpoint.tokenizer.texts]
    builder = PromptBuilder(manifest, decoder.vocabulary.tokenize)
    vision = VisionEncoder(bundle.vision_path, manifest)
    images = [Image.fromarray(image) for image in _images(manifest.tiling.tile_size)]
    tiles = [split_tiles(load_image(image), manifest.tiling) for image in images]
    conversations = list(_conversations(len(images), texts))
    prompts = [builder.build(m, [len(tiles[i]) for i in used]) for m, used in conversations]
    expected = [reference.inputs(m, [images[i] for i in used]) for m, used in conversations]

    differing = sum(list(p.ids) != ids for p, (ids, _) in zip(prompts, expected, strict=True))
    yield _at_most("prompts with other token ids", differing, 0)
    tokenize, tokenizer = decoder.vocabulary.tokenize, reference.processor.tokenizer
    wrong_tokens = wrong_added_tokens(manifest, texts, tokenize, tokenizer)
    yield _at_most("added tokens with other ids", len(wrong_tokens), 0)
    pixels = [normalize(part, manifest.tiling) for part in tiles]
    wrong = sum(
        not np.array_equal(np.concatenate([pixels[i] for i in used]), want)
        for (_, used), (_, want) in zip(conversations, expected, strict=True)
        if want is not None
    )
    yield _at_most("images with other pixels", wrong, 0)

    features = [reference.image_embeddings(part) for part in pixels]
    ours = np.concatenate([vision.encode(part) for part in tiles])
    yield from _vision_checks(np.concatenate(features), ours, manifest.formats.vision)

    fmt = manifest.formats.decoder
    text = _long_text(decoder, manifest.decoder.sliding_window)
    plain = Prompt(tuple(text), ())
    patch = manifest.tokens.image_patch
    yield from _decoder_checks(
        "text", reference.logits(text), prompt_logits(decoder, plain, None, patch), fmt
    )
    for name, (_, used), prompt, (_, want) in zip(
        ("image", "two images"), conversations[1:3], prompts[1:3], expected[1:3], strict=True
    ):
        embeddings = np.concatenate([features[i] for i in used])
        theirs = reference.logits(prompt.ids, want)  # of our ids, even if they are wrong
        yield from _decoder_checks(name, theirs, prompt_logits(decoder, prompt, embeddings, patch), fmt)


def wrong_added_tokens(
    manifest: Manifest, texts: Collection[str], tokenize: Callable[[str], list[int]], tokenizer: Any
) -> set[str]:
    """Added tokens that are not as in `tokenizer`, the reference's, between words, blanks and line breaks.

    `texts`, which any text may hold, must have its ids in a user's text; the others where a template writes them, and
    none of their ids may be in the prompt of a user who spells them.
    """
    user = "{{ messages[0].content }}"
    typed = PromptBuilder(replace(manifest, chat_template=user), tokenize)
    markers, anywhere = set(manifest.tokens.special.values()), set(texts)
    theirs = tokenizer.get_added_vocab()
    wrong = {text for text, _ in theirs.items() ^ manifest.tokens.added.items()}
    for token in manifest.tokens.added.keys() - {manifest.image_prompt.placeholder}:
        text = f"{token} a{token}b{token}.\n{token}\né {token}  {token}"
        ids = typed.build([Message("user", text)], []).ids
        if token not in anywhere:
            wrong |= {token} if markers.intersection(ids) else set()
            named = replace(manifest.tokens, named={"text": text})
            written = PromptBuilder(replace(manifest, tokens=named, chat_template="{{ text }}"), tokenize)
            ids = written.build([Message("user", "")], []).ids
        if list(ids) != tokenizer(text, add_special_tokens=False)["input_ids"]:
            wrong.add(token)
    return wrong


def _vision_checks(reference: NDArray[np.float32], ours: NDArray[np.float32], fmt: str) -> Iterator[Check]:
    error, cosine = token_errors(reference, ours)
    yield _at_most("vision: mean relative error of a token", float(error.mean()), VISION_ERROR[fmt])
    yield _at_least("vision: mean cosine of a token", float(cosine.mean()), VISION_COSINE[fmt])
    if fmt == "fp32":
        worst = relative_to_largest(reference, ours)
        yield _at_most("vision: largest error / largest activation", worst, FLOAT_VISION_ERROR)


def _decoder_checks(
    what: str, reference: NDArray[np.float32], ours: NDArray[np.float32], fmt: str
) -> Iterator[Check]:
    result = kl_divergence(reference, ours)
    yield _at_most(f"decoder, {what}: mean KL divergence (nats)", float(result.kl.mean()), DECODER_KL[fmt])
    yield _at_least(
        f"decoder, {what}: same likeliest token", float(result.same_top.mean()), DECODER_TOP1[fmt]
    )


def _at_most(name: str, value: float, bar: float) -> Check:
    return Check(name, float(value), f"<= {bar:g}", not math.isnan(value) and value <= bar)


def _at_least(name: str, value: float, bar: float) -> Check:
    return Check(name, float(value), f">= {bar:g}", not math.isnan(value) and value >= bar)


def _conversations(images: int, added: list[str]) -> Iterator[tuple[list[Message], list[int]]]:
    """Conversations, the last about all `added` tokens, and the numbers of the images in each."""
    sentences = list(SENTENCES.values())
    yield [Message("user", " ".join(sentences))], []
    yield [Message("user", sentences[0], 1)], [1 % images]
    yield [Message("system", sentences[1]), Message("user", sentences[2], 2)], [0, 2 % images]
    yield (
        [Message("user", sentences[3], 1), Message("assistant", sentences[4]), Message("user", sentences[5])],
        [3 % images],
    )
    if added:
        spaced, joined, lines = (separator.join(added) for separator in (" ", "", "\n"))
        yield [Message("user", spaced, 1), Message("assistant", joined), Message("user", lines)], [0]


def _long_text(decoder: Decoder, window: int | None) -> list[int]:
    """Token ids of all languages' sentences, longer than the sliding window."""
    length = max(_SHORTEST_TEXT, (window or 0) + _BEYOND_WINDOW)
    ids: list[int] = []
    while len(ids) < length:
        for sentence in SENTENCES.values():
            ids += decoder.vocabulary.tokenize(sentence + "\n")
    return ids[: min(length, decoder.context_size)]


def _context(bundle: Bundle) -> int:
    return bundle.manifest.decoder.context_length


def _images(tile_size: int) -> list[NDArray[np.uint8]]:
    """Smooth, noisy images in several ratios, each of about four tiles' area; always the same ones."""
    rng = np.random.default_rng(7)
    images = []
    for columns, rows in _IMAGES:
        unit = 2 * tile_size / math.sqrt(columns * rows)
        width, height = round(unit * columns), round(unit * rows)
        coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16
        )
        noise = rng.integers(-20, 21, smooth.shape, dtype=np.int16)
        images.append(np.clip(smooth + noise, 0, 255).astype(np.uint8))
    return images


def _tiles(size: int) -> NDArray[np.uint8]:
    return np.stack([np.resize(image, (size, size, 3)) for image in _images(size)])


def _runs(flags: NDArray[np.bool_], longest: int) -> Iterator[tuple[int, int]]:
    """Ranges of equal flags, none longer than `longest`."""
    start = 0
    for stop in range(1, len(flags) + 1):
        if stop == len(flags) or flags[stop] != flags[start] or stop - start == longest:
            yield start, stop
            start = stop
