"""The tokenizer of a checkpoint, in the form that a GGUF file and a manifest need.

Only Cohere's kind is known: byte-level BPE over NFC text, digits one by one, GPT-2's splitting expression; llama.cpp
calls it `command-r`. Another kind is an error, never a silent approximation.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ayaedge.checks import shown
from ayaedge.manifest import ImagePrompt, TextToken
from ayaedge_export.checkpoint.fields import LARGEST

PRE_TOKENIZER = "command-r"
_FLAGS = ("normalized", "single_word", "lstrip", "rstrip")
_COHERE_CONTROL = re.compile(
    r"<(?:PAD|UNK|CLS|SEP|(?:MASK|BOS|EOS)_TOKEN|EOP_TOKEN)>"
    r"|<\|(?:START|END)_OF_(?:TURN_TOKEN|IMG)\|>"
    r"|<\|(?:START|END)_(?:THINKING|RESPONSE|ACTION|TOOL_RESULT)\|>"
    r"|<\|(?:YES|NO|GOOD|BAD|USER|CHATBOT|SYSTEM|USER_\d|EXTRA_\d)_TOKEN\|>"
    r"|<\|(?:BEGINNING_OF_(?:PREFIX|MIDDLE|SUFFIX)|END_OF_MIDDLE)_FIM_TOKEN\|>"
    r"|<\|(?:NEW_FILE|IMG_LINE_BREAK|IMG_PATCH)\|>"
)
"""Cohere's own added tokens. Most are not marked as special, and none is meant for a user's text."""
_WORDS = re.compile(r"[\w\s-]+")


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
    texts: tuple[TextToken, ...] = ()
    """Added tokens that any text may hold; all of them, with their flags, until `keep_markers` has chosen."""

    @property
    def bos(self) -> str:
        return self.named["bos_token"]

    @property
    def eos(self) -> str:
        return self.named["eos_token"]

    @property
    def markers(self) -> dict[str, int]:
        """Added tokens that only the template and images may write, by id."""
        texts = {token.id for token in self.texts}
        return {
            text: index
            for text, index in sorted(self.added.items(), key=lambda item: item[1])
            if index not in texts
        }

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
    listed = _merged(data.get("added_tokens"), settings.get("added_tokens_decoder"), faults)
    texts, hidden = _added_tokens(listed, faults)
    added = {token.text: token.id for token in texts}
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
    if len(faults) == before:
        _check_ids(texts, vocab, faults)
    usable = len(faults) == before
    _check_settings(settings, added, faults)
    if not usable:
        return None
    return Tokenizer(vocab, merges, added, hidden, named, bool(settings.get("add_bos_token", True)), texts)


def keep_markers(
    tokenizer: Tokenizer, template: str, image: ImagePrompt, stop_ids: Collection[int], faults: list[str]
) -> Tokenizer:
    """The tokenizer with those added tokens in `texts` that any text may hold, as in the reference.

    All others stay what only the template and the image prompt write: what ends an answer or is named in the
    settings, Cohere's control tokens, the image markers and tile tags, and what stands in the template. Plain words
    are the exception: a preamble may well speak of what a fine-tune has made a token of.
    """
    tag = re.compile(rf"{re.escape(image.tile)}_\d+")
    written = {
        image.placeholder,
        image.start,
        image.end,
        image.patch,
        image.thumbnail,
        *tokenizer.named.values(),
    }

    def is_marker(token: TextToken) -> bool:
        word = token.id not in tokenizer.hidden and _WORDS.fullmatch(token.text)
        return (
            token.text in written
            or token.id in stop_ids
            or bool(_COHERE_CONTROL.fullmatch(token.text) or tag.fullmatch(token.text))
            or (token.text in template and not word)
        )

    markers = {token for token in tokenizer.texts if is_marker(token)}
    faults += [
        f"tokenizer.json: added token {token.text!r} has {flag}, which is not supported for what the template writes"
        for token in tokenizer.texts
        if token in markers
        for flag in _FLAGS[1:]
        if getattr(token, flag)
    ]
    texts = tuple(token for token in tokenizer.texts if token not in markers)
    _check_findable(texts, faults)
    return replace(tokenizer, texts=texts)


def _check_findable(texts: Collection[TextToken], faults: list[str]) -> None:
    """Faults where it depends on chance which of two tokens the reference finds."""
    composed: dict[str, str] = {}
    for token in texts:
        if not token.normalized:
            continue
        text = unicodedata.normalize("NFC", token.text)
        if composed.setdefault(text, token.text) != token.text:
            faults.append(f"tokenizer.json adds {text!r} twice, in two Unicode spellings: leave one")
    takes = [token.text for token in texts if token.rstrip]
    begins = [token.text for token in texts if token.text[0].isspace()]
    if takes and begins:
        faults.append(
            f"tokenizer.json: added token {takes[0]!r} takes the blanks behind it (rstrip), and {begins[0]!r} begins "
            "with a blank, which is not supported together"
        )


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


def _merged(listed: object, settings: object, faults: list[str]) -> object:
    """The added tokens of tokenizer.json, with the flags of tokenizer_config.json, which transformers prefers."""
    if not isinstance(listed, list) or not isinstance(settings, Mapping):
        return listed
    stated = {
        text: token for token in settings.values() if isinstance(token, Mapping) and (text := _content(token))
    }
    merged: list[object] = []
    for token in listed:
        if not isinstance(token, Mapping) or not (other := stated.get(_content(token) or "")):
            merged.append(token)
            continue
        merged.append({**token, **other})
        faults += [
            f"added token {token['content']!r} has {flag} in tokenizer.json and not in tokenizer_config.json"
            for flag in _FLAGS[1:]
            if token.get(flag) and not other.get(flag, True)
        ]
    return merged


def _added_tokens(listed: object, faults: list[str]) -> tuple[tuple[TextToken, ...], tuple[int, ...]]:
    """Added tokens with their flags, and the ids of those that are marked as special."""
    added: dict[str, TextToken] = {}
    taken: set[int] = set()
    hidden = []
    for token in listed if isinstance(listed, list) else []:
        if not isinstance(token, Mapping) or not _content(token) or not _is_id(token.get("id")):
            faults.append(f"tokenizer.json has an added token without a text and an id: {shown(token)}")
            continue
        text, index = token["content"], token["id"]
        if text in added or index in taken:
            faults.append(
                f"tokenizer.json adds {text!r} with id {index}, but one of the two is taken already"
            )
        taken.add(index)
        special = bool(token.get("special"))
        flags = {flag: bool(token.get(flag)) for flag in _FLAGS[1:]}
        added[text] = TextToken(text, index, normalized=bool(token.get("normalized", not special)), **flags)
        if special:
            hidden.append(index)
    return tuple(added.values()), tuple(sorted(hidden))


def _check_ids(texts: Collection[TextToken], vocab: Mapping[str, int], faults: list[str]) -> None:
    """A fault unless the tokenizers library, which numbers added tokens itself, gives them the ids that are listed."""
    last = -1
    for token in texts:
        expected = vocab.get(token.text, max(last + 1, len(vocab)))
        if token.id != expected:
            faults.append(
                f"added token {token.text!r} has id {token.id} in the tokenizer's files, and {expected} where "
                "transformers loads them; ids of added tokens must follow the vocabulary's without gaps"
            )
            return
        last = max(last, token.id)


def _check_settings(settings: Mapping[str, Any], added: Mapping[str, int], faults: list[str]) -> None:
    """Faults for what transformers would change in the tokenizer when it reads its settings."""
    if settings.get("add_prefix_space"):
        faults.append("tokenizer_config.json has add_prefix_space, which is not supported")
    named: list[object] = []
    for key in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key)
        named += (
            listed.values() if isinstance(listed, Mapping) else listed if isinstance(listed, list) else ()
        )
    missing = [text for text in dict.fromkeys(map(_content, named)) if text and text not in added]
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + ", ..." * (len(missing) > 3)
        faults.append(
            f"tokenizer_config.json adds {shown}, which tokenizer.json lacks: load the tokenizer with transformers and "
            "save it with save_pretrained"
        )


def _vocabulary(vocab: object, added: Mapping[str, int], faults: list[str]) -> dict[str, int]:
    """Ordinary tokens; an added token may be among them under its own id only."""
    if not isinstance(vocab, Mapping) or not vocab or not all(map(_is_id, vocab.values())):
        faults.append("tokenizer.json has no vocabulary of tokens with ids")
        return {}
    if any(not text or "\0" in text for text in (*vocab, *added)) or not _encodes("".join((*vocab, *added))):
        faults.append("tokenizer.json has a token that is empty, holds a zero byte or is not valid Unicode")
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
        left, right = parts if isinstance(parts, list) and len(parts) == 2 else (None, None)
        known = isinstance(left, str) and isinstance(right, str) and left in vocab and right in vocab
        if not known:
            faults.append(f"tokenizer.json has a merge that is not a pair of its tokens: {shown(merge)}")
            return ()
        merges.append(f"{left} {right}")
    if not merges:
        faults.append("tokenizer.json has no merges")
    return tuple(merges)


def _encodes(text: str) -> bool:
    """Whether there is no half of a surrogate pair in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST


def _kind(step: object) -> object:
    return step.get("type") if isinstance(step, Mapping) else None


def _content(token: object) -> str | None:
    """The text of a token that is written as a string or as an object with its flags."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
