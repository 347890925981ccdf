"""The tokenizer of a checkpoint, in the form that a GGUF file and a manifest need.

Only Cohere's kind is known: byte-level BPE over NFC text, digits one by one, GPT-2's splitting expression; llama.cpp
calls it `command-r`. Another kind is an error, never a silent approximation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ayaedge_export.fields import LARGEST

PRE_TOKENIZER = "command-r"


@dataclass(frozen=True)
class Tokenizer:
    """Vocabulary, merges and added tokens."""

    vocab: dict[str, int]
    """Ordinary tokens, in byte-level spelling."""
    merges: tuple[str, ...]
    """Pairs of tokens, separated by a space, in the order in which they are merged."""
    added: dict[str, int]
    """Tokens that are matched as a whole in the template's text."""
    hidden: tuple[int, ...]
    """Ids of the added tokens that are marked as special: decoding leaves them out."""
    named: dict[str, str]
    """Text of `bos_token`, `eos_token` and, where there is one, `pad_token`."""
    adds_bos: bool

    @property
    def bos(self) -> str:
        return self.named["bos_token"]

    @property
    def eos(self) -> str:
        return self.named["eos_token"]

    @property
    def size(self) -> int:
        """One more than the largest id."""
        return max(*self.vocab.values(), *self.added.values()) + 1

    def token_list(self, rows: int) -> list[str | None]:
        """The token of each of `rows` embedding rows, None where there is none."""
        tokens: list[str | None] = [None] * rows
        for token, index in (*self.vocab.items(), *self.added.items()):
            tokens[index] = token
        return tokens


def parse_tokenizer(
    data: Mapping[str, Any], settings: Mapping[str, Any], faults: list[str]
) -> Tokenizer | None:
    """The tokenizer of tokenizer.json (`data`) and tokenizer_config.json (`settings`); None if it is unusable.

    What is wrong is appended to `faults`.
    """
    before = len(faults)
    model = data.get("model")
    model = model if isinstance(model, Mapping) else {}
    _check_kind(data, model, faults)
    added, hidden = _added_tokens(data.get("added_tokens"), faults)
    vocab = _vocabulary(model.get("vocab"), added, faults)
    merges = _merges(model.get("merges"), vocab, faults)
    named = {
        key: token
        for key in ("bos_token", "eos_token", "pad_token")
        if (token := _content(settings.get(key))) is not None
    }
    for key in ("bos_token", "eos_token"):
        if named.get(key) not in added:
            faults.append(
                f"tokenizer_config.json must name a {key} that tokenizer.json has, not {named.get(key)!r}"
            )
    if len(faults) > before:
        return None
    return Tokenizer(vocab, merges, added, hidden, named, bool(settings.get("add_bos_token", True)))


def _check_kind(data: Mapping[str, Any], model: Mapping[str, Any], faults: list[str]) -> None:
    if model.get("type") != "BPE":
        faults.append(f"tokenizer.json holds a {model.get('type')!r} model; supported is byte-level BPE")
    if _kind(data.get("normalizer")) != "NFC":
        faults.append("tokenizer.json normalises in another way than NFC, which is not supported")
    pre = data.get("pre_tokenizer")
    listed = pre.get("pretokenizers") if isinstance(pre, Mapping) else None
    steps = [step for step in (listed if isinstance(listed, list) else [pre]) if isinstance(step, Mapping)]
    kinds = [step.get("type") for step in steps]
    settings = {key: value for step in steps for key, value in step.items()}
    if (
        kinds != ["Digits", "ByteLevel"]
        or not settings.get("individual_digits")
        or settings.get("add_prefix_space")
        or not settings.get("use_regex", True)
    ):
        faults.append(
            f"tokenizer.json splits text by {kinds}; supported is Cohere's way: digits one by one, then ByteLevel"
        )


def _added_tokens(listed: object, faults: list[str]) -> tuple[dict[str, int], tuple[int, ...]]:
    """Added tokens by their text, and the ids of those that are marked as special."""
    added: dict[str, int] = {}
    hidden = []
    for token in listed if isinstance(listed, list) else []:
        if not isinstance(token, Mapping) or not token.get("content") or not _is_id(token.get("id")):
            faults.append(f"tokenizer.json has an added token without a text and an id: {token!r:.80}")
            continue
        text, index = str(token["content"]), int(token["id"])
        if text in added or index in added.values():
            faults.append(
                f"tokenizer.json adds {text!r} with id {index}, but one of the two is taken already"
            )
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                faults.append(f"tokenizer.json: added token {text!r} has {flag}, which is not supported")
        added[text] = index
        if token.get("special"):
            hidden.append(index)
    return added, tuple(sorted(hidden))


def _vocabulary(vocab: object, added: Mapping[str, int], faults: list[str]) -> dict[str, int]:
    """Ordinary tokens; an added token may be among them under its own id only."""
    if not isinstance(vocab, Mapping) or not vocab or not all(map(_is_id, vocab.values())):
        faults.append("tokenizer.json has no vocabulary of tokens with ids")
        return {}
    taken = {index: text for text, index in added.items()}
    for text, index in vocab.items():
        if taken.setdefault(index, text) != text or added.get(text, index) != index:
            faults.append(f"tokenizer.json gives id {index} to {text!r} and to {taken[index]!r}")
    return dict(vocab)


def _merges(listed: object, vocab: Mapping[str, int], faults: list[str]) -> tuple[str, ...]:
    """Merges as "left right", whichever of its two spellings the file uses."""
    merges = []
    for merge in listed if isinstance(listed, list) else []:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(parts, list)
            or len(parts) != 2
            or not all(part in vocab for part in map(str, parts))
        ):
            faults.append(f"tokenizer.json has a merge that is not a pair of its tokens: {merge!r:.80}")
            return ()
        merges.append(" ".join(parts))
    if not merges:
        faults.append("tokenizer.json has no merges")
    return tuple(merges)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _kind(step: object) -> object:
    return step.get("type") if isinstance(step, Mapping) else None


def _content(token: object) -> str | None:
    """The text of a token that is written as a string or as an object with its flags."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
