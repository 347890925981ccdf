"""How far a bundle's predictions are from another model's, over the tokens of the answers that this one wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ayaedge.bundle import Bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.images.load import load_rgb
from ayaedge.images.tiling import split_tiles
from ayaedge.manifest import Manifest
from ayaedge.text.prompt import Message, Prompt, PromptBuilder
from ayaedge_export.checkpoint.checkpoint import Checkpoint
from ayaedge_export.checkpoint.logit_scale import scaled_like
from ayaedge_export.evaluation.evaluate import (
    check_comparable,
    compare_windows,
    files_digest,
    open_scorer,
)
from ayaedge_export.evaluation.results import Journal, WindowResult
from ayaedge_export.evaluation.scorers import BundleScorer
from ayaedge_export.evaluation.windows import IMAGES, Window
from ayaedge_export.matmul_threads import bounded_matmul

_JOURNAL = {"of": "answers"}


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer, and what it is an answer to."""

    key: str
    """Unique among all of them."""
    language: str
    question: str
    text: str
    images: tuple[bytes, ...] = ()
    """Files of images, all in front of the question."""
    system: str | None = None

    @property
    def digest(self) -> str:
        """A digest of all of it but its name."""
        images = [hashlib.sha256(image).hexdigest() for image in self.images]
        return hashlib.sha256(repr((self.question, self.text, self.system, images)).encode()).hexdigest()


def compare_answers(
    bundle: Bundle,
    against: Bundle | Checkpoint,
    answers: Iterable[WrittenAnswer],
    *,
    context: int,
    max_tiles: int | None = None,
    journal: Path | None = None,
    threads: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, WindowResult]:
    """Both models' predictions over the answers of `against`, by key, at each token and at the end.

    Both read question and answer in at most `context` tokens; what is longer is cut off, and an answer that the chat
    template writes otherwise is left out. What is finished is appended to `journal`, and not computed again. Raises
    BundleError for models that cannot be compared, InvalidOptionError for a journal of something else.
    """
    if isinstance(against, Checkpoint):
        against = scaled_like(against, bundle.manifest)
    check_comparable(bundle.manifest, against)
    models = f"{files_digest(bundle)} {files_digest(against)} {max_tiles}"
    record = Journal(journal, _JOURNAL)
    names: dict[str, str] = {}
    manifest, found = bundle.manifest, {}

    def pending() -> Iterator[Window]:
        for number, answer in enumerate(answers, IMAGES):
            name = hashlib.sha256(f"{models} {answer.digest}".encode()).hexdigest()
            if name in record.results:
                found[answer.key] = record.results[name]
            elif (window := _window(builder, manifest, answer, number, context, max_tiles)) is not None:
                names[window.key] = name
                yield window

    with Decoder(bundle.decoder_path, manifest, DecoderOptions(context_size=2)) as reader:
        builder = PromptBuilder(manifest, reader.vocabulary.tokenize)
        with (
            bounded_matmul(manifest.decoder.hidden_size, threads),
            closing(open_scorer(against, manifest, context, threads, "layers")) as reference,
            closing(BundleScorer(bundle, context_size=context, threads=threads)) as candidate,
        ):
            vocabulary = manifest.decoder.vocab_size
            for result in compare_windows(pending(), reference, candidate, vocabulary, threads):
                record.add(replace(result, key=names[result.key]))
                found[result.key] = result
                if advance:
                    advance(len(found))
    return found


def _window(
    builder: PromptBuilder,
    manifest: Manifest,
    answer: WrittenAnswer,
    number: int,
    context: int,
    most: int | None,
) -> Window | None:
    """Question and answer as one sequence, compared from where the answer's first token is predicted."""
    images = [split_tiles(load_rgb(data), manifest.tiling, max_tiles=most) for data in answer.images]
    prompt = _prompt(builder, answer, [len(tiles) for tiles in images])
    if not prompt.answers:
        return None
    span = prompt.answers[-1]
    ids = prompt.ids[: min(span.stop, context)]
    if span.start >= len(ids):
        return None
    return Window(
        answer.key, answer.language, Prompt(ids, prompt.images), span.start - 1,
        number if images else None, np.concatenate(images) if images else None,
    )  # fmt: skip


def _prompt(builder: PromptBuilder, answer: WrittenAnswer, tiles: Sequence[int]) -> Prompt:
    messages = [Message("user", answer.question, len(tiles)), Message("assistant", answer.text)]
    if answer.system is not None:
        messages.insert(0, Message("system", answer.system))
    return builder.build(messages, tiles, generate=False)
