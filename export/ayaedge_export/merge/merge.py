"""A checkpoint whose decoder is merged with a language model: what is asked for, what comes out, what is told of it.

The recipe of Aya Vision's authors (arXiv:2505.08751): the weights of the decoder that was trained on images are
interpolated with those of the language model that it was trained from, which brings back what it has forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ayaedge.bundle import Bundle, hash_file
from ayaedge.checks import check_options, one_of, plain, real_number
from ayaedge.errors import CheckpointError, InvalidOptionError, list_faults
from ayaedge.hardware.machine import usable_threads
from ayaedge.manifest import FileInfo, Merge, MergedModel
from ayaedge_export.checkpoint.checkpoint import Checkpoint, Weights
from ayaedge_export.merge.language_model import LanguageModel, open_language_model
from ayaedge_export.merge.merged_tensors import MergedTensors
from ayaedge_export.merge.methods import METHODS, MergeMethod

_NAMED = 4
"""Tokens that a message names."""


@dataclass(frozen=True)
class MergeOptions:
    """What a checkpoint's decoder is merged with, and how.

    With v for its weights, b for the base's and w for `weight`: `linear` is b + w (v - b), `slerp` the same along the
    arc between both (a tensor at a time), `task-arithmetic` b + w (v - a), where a are the weights of the `ancestor`.
    """

    base: str | Path
    """Directory of a language model: Cohere or Cohere2, of the decoder's shape and vocabulary."""
    weight: float
    """Of the vision-language model, from 0 (the base) to 1 (the checkpoint as it is)."""
    method: MergeMethod = "linear"
    ancestor: str | Path | None = None
    """With `task-arithmetic`: the language model that the vision-language model was trained from."""

    def faults(self) -> list[str]:
        """What is wrong with them, as sentences."""
        found = [weight_fault(self.weight), one_of("merge method", self.method, METHODS)]
        if self.method == "task-arithmetic" and self.ancestor is None:
            found.append(
                "task-arithmetic adds to the base what the checkpoint has learned since an ancestor: name that "
                "language model as merge ancestor (without one, base + weight * (checkpoint - base), it is linear)"
            )
        if self.method != "task-arithmetic" and self.ancestor is not None:
            found.append("only task-arithmetic has a merge ancestor")
        return [fault for fault in found if fault]


def weight_fault(weight: object) -> str | None:
    """What is wrong with a weight, in words."""
    return real_number("merge weight", weight, least=0, most=1, limits="a number from 0 to 1")


@dataclass(frozen=True)
class MergedCheckpoint(Checkpoint):
    """A checkpoint whose decoder's tensors are those of a merge."""

    original: Checkpoint
    base: LanguageModel
    method: MergeMethod
    weight: float
    ancestor: LanguageModel | None

    @property
    def sources(self) -> tuple[Weights, ...]:
        """See `Checkpoint.sources`."""
        further = [model.weights for model in (self.base, self.ancestor) if model]
        return (*self.original.sources, *further)

    @property
    def label(self) -> str:
        """What tells this merge from others, in names of bundles: `linear-0.6`."""
        return f"{self.method}-{self.weight}"

    @property
    def text(self) -> str:
        """What is merged, for people."""
        since = f" what was learned since {self.ancestor.name}" if self.ancestor else ""
        told = f"{self.weight:g} of{since or f' {self.name}'} with {self.base.name} ({self.method})"
        rows = self.base.foreign_rows
        if not rows:
            return told
        names = self.tokenizer.token_list(self.tokenizer.size)
        first = ", ".join(str(names[row]) for row in rows[:_NAMED]) + ", ..." * (len(rows) > _NAMED)
        return f"{told}; {len(rows)} added tokens that it lacks keep their embeddings: {first}"

    def weighted(self, weight: float) -> MergedCheckpoint:
        """The same merge at another weight."""
        check_options(weight_fault(weight))
        tensors = MergedTensors(
            self.original.tensors,
            self.base.tensors,
            self.config.text.tensors,
            method=self.method,
            weight=float(weight),
            ancestor=self.ancestor.tensors if self.ancestor else None,
            own_rows=self.base.foreign_rows,
        )
        return replace(self, weight=float(weight), tensors=tensors)


def merge_checkpoint(checkpoint: Checkpoint, options: MergeOptions) -> MergedCheckpoint:
    """The checkpoint with its decoder merged as asked; only headers and tokenizers are read.

    Raises InvalidOptionError, and CheckpointError with everything in which a model does not fit the checkpoint.
    """
    check_options(*options.faults())
    if isinstance(checkpoint, MergedCheckpoint):
        raise InvalidOptionError(f"the checkpoint is merged with {checkpoint.base.name} already")
    base = open_language_model(options.base, checkpoint)
    ancestor = None
    if options.ancestor is not None:
        ancestor = open_language_model(options.ancestor, checkpoint)
        foreign = {*base.foreign_rows, *ancestor.foreign_rows}
        base = replace(base, foreign_rows=tuple(sorted(foreign)))
    values = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    merged = MergedCheckpoint(
        **values, original=checkpoint, base=base, method=options.method, weight=1.0, ancestor=ancestor
    )
    return merged.weighted(plain(options.weight))


def merge_facts(checkpoint: Checkpoint) -> dict[str, object]:
    """What decides about a merged decoder, next to the files of `Checkpoint.sources`; empty without a merge."""
    if not isinstance(checkpoint, MergedCheckpoint):
        return {}
    return {"merge": {"method": checkpoint.method, "weight": checkpoint.weight}}


def describe_merge(checkpoint: Checkpoint) -> Merge | None:
    """The merge for a manifest, None without one; reads all of the language models' files for their hashes."""
    if not isinstance(checkpoint, MergedCheckpoint):
        return None
    ancestor = _describe_model(checkpoint.ancestor) if checkpoint.ancestor else None
    return Merge(checkpoint.method, checkpoint.weight, _describe_model(checkpoint.base), ancestor)


def _describe_model(model: LanguageModel) -> MergedModel:
    paths = sorted({model.tensors.entries[name].file for name in model.weights.names})
    with ThreadPoolExecutor(usable_threads()) as pool:
        hashes = pool.map(hash_file, paths)
        files = {
            path.name: FileInfo(path.stat().st_size, sha) for path, sha in zip(paths, hashes, strict=True)
        }
    return MergedModel(model.name, model.license, files)


def merge_like(
    bundle: Bundle, checkpoint: Checkpoint, base: str | Path, ancestor: str | Path | None = None
) -> MergedCheckpoint:
    """The checkpoint merged as the decoder of `bundle` was, to compare both.

    Raises InvalidOptionError for a bundle without a merge, and CheckpointError for other models than it was merged
    with, by the SHA-256 of their files.
    """
    merge = bundle.manifest.source.merge
    if merge is None:
        raise InvalidOptionError(f"the decoder of {bundle.name} was not merged: leave out the merge base")
    options = MergeOptions(base, merge.weight, merge.method, ancestor)  # type: ignore[arg-type]
    merged = merge_checkpoint(checkpoint, options)
    found = describe_merge(merged)
    assert found is not None
    faults = [*_file_faults(base, merge.base, found.base)]
    if merge.ancestor and found.ancestor:
        faults += _file_faults(ancestor, merge.ancestor, found.ancestor)
    if faults:
        raise CheckpointError(list_faults("the bundle was merged with other weights", faults))
    return merged


def _file_faults(place: object, wanted: MergedModel, found: MergedModel) -> Sequence[str]:
    """A sentence unless a model's files hold what those of a manifest held, however they are called and cut."""
    if sorted(info.sha256 for info in wanted.files.values()) == sorted(
        info.sha256 for info in found.files.values()
    ):
        return []
    return [f"{place} is not the {wanted.name} that is meant: the SHA-256 of its files differ"]
