"""The language model that a decoder is merged with: opened, and held against the checkpoint before any work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayaedge.checks import shown
from ayaedge.errors import CheckpointError, list_faults
from ayaedge_export.checkpoint.checkpoint import Checkpoint, Weights, tensor_faults
from ayaedge_export.checkpoint.config import DECODER_TYPES, TextConfig, parse_language_model
from ayaedge_export.checkpoint.files import CheckpointFiles, checkpoint_name
from ayaedge_export.checkpoint.handed_over import (
    adapter_faults,
    check_directory,
    quantized_by,
    quantized_fault,
)
from ayaedge_export.checkpoint.spec import CONNECTOR, TOWER
from ayaedge_export.checkpoint.tensors import TensorIndex, canonical_name, language_model_name
from ayaedge_export.checkpoint.tokenizer import Tokenizer, parse_tokenizer

_SAME = {
    "model_type": "model_type",
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "layer_norm_eps": "layer_norm_eps",
    "rope_theta": "rope_theta",
    "logit_scale": "logit_scale",
    "use_qk_norm": "use_qk_norm",
    "sliding_window": "sliding_window",
    "layer_is_sliding": "layer_types",
}
"""What both must have in common, and what config.json calls it. The context's length decides about no weight."""


@dataclass(frozen=True)
class LanguageModel:
    """A language model of a checkpoint's own shape and vocabulary, under the names of its decoder's tensors."""

    directory: Path
    license: str
    tensors: TensorIndex
    weights: Weights
    foreign_rows: tuple[int, ...]
    """Ids of the checkpoint's added tokens that this model lacks, or has under other ids: image markers."""

    @property
    def name(self) -> str:
        """What it is called: its directory's name, unless that is a hash."""
        return checkpoint_name(self.directory)


def open_language_model(directory: str | Path, checkpoint: Checkpoint) -> LanguageModel:
    """Open a Cohere or Cohere2 model, or the decoder of an Aya Vision, to merge the checkpoint's decoder with.

    CheckpointError lists everything in which it is damaged or differs from the checkpoint. Number formats may differ.
    """
    directory = Path(directory)
    check_directory(directory)
    files = CheckpointFiles(directory)
    faults = files.faults
    settings = files.read("config.json")
    if faults:
        raise CheckpointError(list_faults(f"the model {directory}", faults))
    named = files.read_tokenizer_settings()
    text, tied = _parse(directory, settings, faults)
    faults += adapter_faults(directory)
    tokenizer = parse_tokenizer(files.read("tokenizer.json"), named, faults)
    differences = list(_differences(text, checkpoint.config.text))
    tensors = _tensors(directory, settings, checkpoint, faults, tied=tied, comparable=not differences)
    foreign = tuple(_foreign_rows(tokenizer, checkpoint)) if tokenizer else ()
    if tokenizer:
        differences += _token_faults(tokenizer, checkpoint, foreign)
    faults += differences
    if faults or tensors is None:
        where = f"{directory} cannot be merged into the decoder of {checkpoint.directory}"
        raise CheckpointError(list_faults(where, faults))
    weights = Weights(directory, tensors, tuple(checkpoint.config.text.tensors))
    return LanguageModel(directory, files.read_license(), tensors, weights, foreign)


def _parse(directory: Path, settings: dict[str, Any], faults: list[str]) -> tuple[TextConfig, bool]:
    try:
        return parse_language_model(settings, faults)
    except CheckpointError as error:
        raise CheckpointError(f"the model {directory}: {error}") from None


def _tensors(
    directory: Path,
    settings: dict[str, Any],
    checkpoint: Checkpoint,
    faults: list[str],
    *,
    tied: bool,
    comparable: bool,
) -> TensorIndex | None:
    """The weights; what is wrong with them is appended, also by the checkpoint's shapes if they are `comparable`."""
    if quantized := quantized_by(directory, settings):
        faults.append(quantized_fault(quantized))
        return None
    plain = settings.get("model_type") in DECODER_TYPES
    try:
        tensors = TensorIndex(directory, language_model_name if plain else canonical_name)
    except CheckpointError as error:
        faults.append(str(error))
        return None
    if comparable:
        beside = () if plain else (f"{TOWER}.", f"{CONNECTOR}.")
        faults += tensor_faults(tensors, checkpoint.config.text.tensors, tied=tied, beside=beside)
    return tensors


def _differences(text: TextConfig, own: TextConfig) -> Iterator[str]:
    """A sentence on each value that is not the checkpoint's."""
    for field, key in _SAME.items():
        theirs, ours = getattr(text, field), getattr(own, field)
        if theirs == ours:
            continue
        if field == "layer_is_sliding":
            if text.model_type == own.model_type and text.num_layers == own.num_layers:
                yield "other layers than the checkpoint's slide (layer_types, sliding_window_pattern)"
        elif field != "sliding_window" or text.model_type == own.model_type:
            yield f"its {key} is {shown(theirs)}, the checkpoint's is {shown(ours)}"


def _foreign_rows(tokenizer: Tokenizer, checkpoint: Checkpoint) -> Iterator[int]:
    """Ids at which the checkpoint has a token, and the model none or another one."""
    own = checkpoint.tokenizer
    rows = max(own.size, tokenizer.size, checkpoint.config.text.vocab_size)
    pairs = zip(own.token_list(rows), tokenizer.token_list(rows), strict=True)
    return (index for index, (ours, theirs) in enumerate(pairs) if ours is not None and ours != theirs)


def _token_faults(tokenizer: Tokenizer, checkpoint: Checkpoint, foreign: Sequence[int]) -> Iterator[str]:
    """Sentences on differences between vocabularies with which ids do not mean the same text."""
    own = checkpoint.tokenizer
    names = own.token_list(own.size)
    added = set(own.added.values())
    ordinary = [index for index in foreign if index not in added]
    if ordinary:
        yield (
            f"its vocabulary is another one: {len(ordinary):,} of the checkpoint's tokens are not there under the same "
            f"id, such as {shown(names[ordinary[0]])} ({ordinary[0]})"
        )
    elif tokenizer.merges != own.merges:
        yield "its tokenizer merges tokens in another order than the checkpoint's"
    ends = {own.added[own.bos], *checkpoint.stop_ids}
    for index in foreign:
        if index in ends and index in added:
            yield f"{shown(names[index])}, which begins or ends the checkpoint's texts, has not the id {index} there"
