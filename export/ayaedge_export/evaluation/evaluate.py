"""How far a bundle's predictions are from its checkpoint's or another bundle's, in each language.

Window by window, a few positions at a time; finished windows are kept in a file, so that an interrupted evaluation
goes on. What the windows are is in `evaluation.windows`, how a model is asked in `evaluation.scorers`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ayaedge.bundle import MANIFEST, Bundle, read_bundle
from ayaedge.cache.verified import verified
from ayaedge.checks import check_options, instance
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.errors import BundleError, InvalidOptionError, list_faults
from ayaedge.hardware.machine import usable_threads
from ayaedge.manifest import Manifest
from ayaedge_export.checkpoint.checkpoint import Checkpoint, open_checkpoint
from ayaedge_export.checkpoint.logit_scale import scaled_like
from ayaedge_export.evaluation.results import Journal, WindowResult
from ayaedge_export.evaluation.scorers import (
    BundleScorer,
    Scorer,
    StreamedScorer,
    TransformersScorer,
    scored_ranges,
)
from ayaedge_export.evaluation.windows import BUILTIN, WINDOW, Passages, Window, make_windows, read_passages
from ayaedge_export.matmul_threads import bounded_matmul
from ayaedge_export.merge.merge import MergedCheckpoint, merge_facts
from ayaedge_quant.kernels import kl_divergence

logger = logging.getLogger("ayaedge.evaluate")

Through = Literal["layers", "transformers"]
"""How a checkpoint is asked: layer by layer in bounded memory, or wholly in memory by the original implementation."""
THROUGH: tuple[Through, ...] = get_args(Through)

OnWindow = Callable[[int, int, str], None]
"""Called with the number of windows that are finished, of all windows, and the key of the last one."""

PREPARED_POSITIONS = 2048
"""Positions that a checkpoint's layers are read for at a time."""
_PERCENTILE = 99


@dataclass(frozen=True)
class Fidelity:
    """Figures over some positions."""

    positions: int
    mean_kl: float
    """Mean KL divergence of the next token from the reference, nats."""
    p99_kl: float
    """The value that one position in a hundred exceeds, nats."""
    top1: float
    """Share of positions where both have the same likeliest token."""


@dataclass(frozen=True)
class Evaluation:
    """A bundle against a reference."""

    bundle: str
    against: str
    text: str
    """`builtin` or the file's name."""
    overall: Fidelity
    """Over all positions of text without an image."""
    after_image: Fidelity | None
    """Over all positions behind an image; there each model sees the image through its own vision tower."""
    languages: dict[str, Fidelity]
    languages_after_image: dict[str, Fidelity]

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def figures(self) -> dict[str, float]:
        """The totals under the names that a manifest keeps them by."""
        parts = {"text": self.overall, "after an image": self.after_image}
        return {
            f"eval, {name}: {label}": float(value)
            for name, part in parts.items()
            if part is not None
            for label, value in (
                ("mean KL divergence (nats)", part.mean_kl),
                ("99th percentile of KL divergence (nats)", part.p99_kl),
                ("same likeliest token", part.top1),
            )
        }


def evaluate_bundle(
    bundle: Bundle,
    against: Bundle | Checkpoint | str | Path,
    *,
    text: str | Path = BUILTIN,
    images: bool = True,
    window: int = WINDOW,
    through: Through = "layers",
    journal: Path | None = None,
    threads: int | None = None,
    advance: OnWindow | None = None,
) -> Evaluation:
    """Compare a bundle with a bundle or checkpoint of the same vocabulary, on `text` (a file, or `builtin`).

    Windows have at most `window` tokens; with `images` each language also gets one behind an image. Finished windows
    are appended to `journal`, and skipped when it already holds them. A checkpoint is read layer by layer, or
    wholly by transformers; both compute in float32. Raises BundleError, CheckpointError, InvalidOptionError (also for
    a journal of another evaluation) and MissingExtraError.
    """
    check_options(instance("images", images, bool))
    if not isinstance(against, (Bundle, Checkpoint)):
        against = open_reference(against)
    if isinstance(against, Checkpoint):
        against = scaled_like(against, bundle.manifest)
        _tell_of_merge(bundle, against)
    check_comparable(bundle.manifest, against)
    passages = read_passages(text)
    windows = _plan_windows(bundle, passages, window, images)
    record = Journal(journal, _identity(bundle, against, windows))
    if pending := [w for w in windows if w.key not in record.results]:
        context = max(len(w.prompt.ids) for w in windows)
        with (
            bounded_matmul(bundle.manifest.decoder.hidden_size, threads),
            closing(open_scorer(against, bundle.manifest, context, threads, through)) as reference,
            closing(BundleScorer(bundle, context_size=context, threads=threads)) as candidate,
        ):
            vocabulary = bundle.manifest.decoder.vocab_size
            for result in compare_windows(pending, reference, candidate, vocabulary, threads):
                record.add(result)
                if advance:
                    advance(len(record.results), len(windows), result.key)
    results = [record.results[w.key] for w in windows]
    return summarize(results, bundle=bundle.name, against=against.name, text=Path(text).name)


def open_reference(path: str | Path) -> Bundle | Checkpoint:
    """The bundle or the checkpoint in a directory."""
    path = Path(path)
    if (path / "config.json").is_file() and not (path / MANIFEST).is_file():
        return open_checkpoint(path)
    return read_bundle(path)


def _tell_of_merge(bundle: Bundle, against: Checkpoint) -> None:
    """Warn if a merged decoder is compared with one that is not: what the merge has changed counts too."""
    merge = bundle.manifest.source.merge
    if merge and not isinstance(against, MergedCheckpoint):
        logger.warning(
            "the decoder of %s was merged with %s and is compared with %s alone: name the merge base to compare it "
            "with the same merge", bundle.name, merge.text, against.name,
        )  # fmt: skip


def check_comparable(manifest: Manifest, against: Bundle | Checkpoint) -> None:
    """Raise BundleError unless both predict the same tokens and cut images up in the same way."""
    if isinstance(against, Bundle):
        other = against.manifest
        vocabulary, added = other.decoder.vocab_size, other.tokens.added
        image, tiling, scale = other.image_prompt, other.tiling, other.decoder.logit_scale
    else:
        vocabulary, added = against.config.text.vocab_size, against.tokenizer.added
        image, tiling, scale = against.image_prompt, against.tiling, against.config.text.logit_scale
    pairs = {
        "vocabulary sizes": (manifest.decoder.vocab_size, vocabulary),
        "special tokens": (manifest.tokens.added, added),
        "image markers": (manifest.image_prompt, image),
        "tilings": (manifest.tiling, tiling),
    }
    if None not in (manifest.decoder.logit_scale, scale):
        pairs["logit scales"] = manifest.decoder.logit_scale, scale
    faults = [f"their {what} differ" for what, (ours, theirs) in pairs.items() if ours != theirs]
    if faults:
        raise BundleError(list_faults(f"the comparison of the bundle with {against.name}", faults))


def summarize(results: Iterable[WindowResult], *, bundle: str, against: str, text: str) -> Evaluation:
    """Figures of all results: each language's, and over all positions."""
    results = list(results)
    plain = [r for r in results if not r.after_image]
    after_image = [r for r in results if r.after_image]
    return Evaluation(
        bundle,
        against,
        text,
        _fidelity(plain),
        _fidelity(after_image) if after_image else None,
        _by_language(plain),
        _by_language(after_image),
    )


def _plan_windows(bundle: Bundle, passages: Passages, length: int, images: bool) -> list[Window]:
    manifest = bundle.manifest
    longest = manifest.decoder.context_length
    if not 2 <= length <= longest:
        raise InvalidOptionError(f"a window must have between 2 and {longest} tokens, not {length}")
    with Decoder(bundle.decoder_path, manifest, DecoderOptions(context_size=2)) as decoder:
        tokenize = decoder.vocabulary.tokenize
        return make_windows(passages, manifest, tokenize, length=length, images=images)


def open_scorer(
    against: Bundle | Checkpoint, manifest: Manifest, context: int, threads: int | None, through: Through
) -> Scorer:
    """What gives the logits of a bundle or a checkpoint that others are compared with."""
    if isinstance(against, Bundle):
        return BundleScorer(against, context_size=context, cache_type="f32", threads=threads)
    if through == "transformers":
        return TransformersScorer(against, manifest)
    return StreamedScorer(against, manifest)


def compare_windows(
    windows: Iterable[Window],
    reference: Scorer,
    candidate: Scorer,
    vocabulary: int,
    threads: int | None,
) -> Iterator[WindowResult]:
    """What two models give for windows, in their order; those of a group are in memory together."""
    for group in _groups(windows):
        reference.prepare(group)
        candidate.prepare(group)
        for window in group:
            kl, same = [], []
            ranges = scored_ranges(window, vocabulary)
            pairs = zip(ranges, reference.parts(window), candidate.parts(window), strict=True)
            for (start, _), expected, found in pairs:
                skipped = max(0, window.first - start)
                part = kl_divergence(expected[skipped:], found[skipped:], threads=threads or usable_threads())
                kl.append(part.kl)
                same.append(part.same_top)
            yield WindowResult(
                window.key,
                window.language,
                window.image is not None,
                np.concatenate(kl),
                np.concatenate(same),
            )


def _groups(windows: Iterable[Window]) -> Iterator[list[Window]]:
    """Windows in groups of about `PREPARED_POSITIONS`."""
    group: list[Window] = []
    for window in windows:
        if group and sum(len(w.prompt.ids) for w in [*group, window]) > PREPARED_POSITIONS:
            yield group
            group = []
        group.append(window)
    if group:
        yield group


def _identity(bundle: Bundle, against: Bundle | Checkpoint, windows: Sequence[Window]) -> dict[str, str]:
    """What must be the same for results of two runs to belong together."""
    digest = hashlib.sha256(repr([(w.key, w.prompt, w.first, w.image) for w in windows]).encode())
    return {"bundle": files_digest(bundle), "against": files_digest(against), "windows": digest.hexdigest()}


def files_digest(model: Bundle | Checkpoint) -> str:
    """A digest of what a model's answers depend on."""
    facts: list[Any]
    if isinstance(model, Bundle):
        facts = [verified(model, None).identity]
    else:
        entries = [source.tensors.entries.values() for source in model.sources]
        files = [file for found in entries for file in sorted({entry.file for entry in found})]
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        facts += [model.config.text.logit_scale, *merge_facts(model).items()]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _fidelity(results: Sequence[WindowResult]) -> Fidelity:
    kl = np.concatenate([r.kl for r in results])
    same = np.concatenate([r.same_top for r in results])
    return Fidelity(len(kl), float(kl.mean()), float(np.percentile(kl, _PERCENTILE)), float(same.mean()))


def _by_language(results: Sequence[WindowResult]) -> dict[str, Fidelity]:
    languages = dict.fromkeys(result.language for result in results)
    return {name: _fidelity([r for r in results if r.language == name]) for name in languages}
