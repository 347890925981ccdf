"""The tokenizer of a checkpoint, in the form that a GGUF file and a manifest need.

Only Cohere's kind is known: byte-level BPE over NFC text, digits one by one, GPT-2's splitting expression; llama.cpp
calls it `command-r`. Another kind is an error, never a silent approximation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    bos: str
    eos: str
    pad: str | None
    adds_bos: bool
    max_length: int | None
    """Tokens, as tokenizer_config.json states."""

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
    model = data.get("model") or {}
    _check_kind(data, model, faults)
    added_tokens = data.get("added_tokens") or []
    for token in added_tokens:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                faults.append(
                    f"tokenizer.json: added token {token['content']!r} has {flag}, which is not supported"
                )
    names = {key: _content(settings.get(key)) for key in ("bos_token", "eos_token", "pad_token")}
    for key in ("bos_token", "eos_token"):
        if names[key] is None:
            faults.append(f"tokenizer_config.json has no {key}")
    if len(faults) > before:
        return None
    merges = model["merges"]
    length = settings.get("model_max_length")
    return Tokenizer(
        vocab=dict(model["vocab"]),
        merges=tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in merges),
        added={token["content"]: token["id"] for token in added_tokens},
        hidden=tuple(sorted(token["id"] for token in added_tokens if token.get("special"))),
        bos=str(names["bos_token"]),
        eos=str(names["eos_token"]),
        pad=names["pad_token"],
        adds_bos=bool(settings.get("add_bos_token", True)),
        max_length=int(length) if length else None,
    )


def _check_kind(data: Mapping[str, Any], model: Mapping[str, Any], faults: list[str]) -> None:
    if model.get("type") != "BPE" or not model.get("vocab") or "merges" not in model:
        faults.append(f"tokenizer.json holds a {model.get('type')!r} model; supported is byte-level BPE")
        return
    if (data.get("normalizer") or {}).get("type") != "NFC":
        faults.append("tokenizer.json normalises in another way than NFC, which is not supported")
    pre = data.get("pre_tokenizer") or {}
    steps = [(step.get("type"), step) for step in pre.get("pretokenizers", [pre])]
    kinds = [kind for kind, _ in steps]
    settings = {key: value for _, step in steps for key, value in step.items()}
    if (
        kinds != ["Digits", "ByteLevel"]
        or not settings.get("individual_digits")
        or settings.get("add_prefix_space")
        or not settings.get("use_regex", True)
    ):
        faults.append(
            f"tokenizer.json splits text by {kinds}; supported is Cohere's way: digits one by one, then ByteLevel"
        )


def _content(token: object) -> str | None:
    """The text of a token that is written as a string or as an object with its flags."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
