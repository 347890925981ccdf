"""Conversations to token ids: the chat template, the places of pictures, and text that cannot pose as either.

The ids equal those of the reference's processor. The template decides where turns begin and pictures go; what
a user writes is plain text, even where it spells a turn marker or an image marker.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ayaedge.bundle import Manifest
from ayaedge.errors import PromptError
from ayaedge.template import ChatTemplate

Role = Literal["system", "user", "assistant"]
_GUARDS = [chr(code) for code in range(0xF0000, 0xF0100)]
"""Private-use characters, one of which is put into users' texts while the template is rendered."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str
    images: int = 0
    """Pictures in this turn; they stand before its text."""


@dataclass(frozen=True)
class ImageSpan:
    """Where one picture stands in a prompt: its markers, tile tags and image tokens."""

    start: int
    stop: int
    """Exclusive."""


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the spans among them that belong to pictures."""

    ids: tuple[int, ...]
    images: tuple[ImageSpan, ...]

    @property
    def image_tokens(self) -> int:
        """Tokens inside all spans."""
        return sum(span.stop - span.start for span in self.images)


class PromptBuilder:
    """Builds prompts for one bundle; `tokenize` gives the ids of plain text, recognising no added token."""

    def __init__(self, manifest: Manifest, tokenize: Callable[[str], list[int]]):
        self._tokenize = tokenize
        self._tokens = manifest.tokens
        self._image = manifest.image_prompt
        self._template = ChatTemplate(manifest.chat_template)
        markers = [*manifest.tokens.special, manifest.image_prompt.placeholder]
        self._markers = re.compile("|".join(re.escape(m) for m in sorted(markers, key=len, reverse=True)))
        # in either case, because a template may change the case of what it is given
        first = {variant for m in markers for variant in (m[0].upper(), m[0].lower())}
        self._first_characters = re.compile("[" + re.escape("".join(sorted(first))) + "]")

    def build(self, messages: Sequence[Message], tiles: Sequence[int], *, generate: bool = True) -> Prompt:
        """The prompt of a conversation whose pictures have that many tiles each, in order.

        With `generate` it ends where the answer begins. Raises PromptError if the number of pictures does not
        fit, if the template refuses the conversation, or if a text is not valid Unicode.
        """
        for message in messages:
            if not isinstance(message.text, str):
                raise PromptError(f"the text of a turn must be a string, not {type(message.text).__name__}")
        wanted = sum(message.images for message in messages)
        if wanted != len(tiles):
            raise PromptError(f"the conversation has places for {wanted} pictures, {len(tiles)} were given")
        guard = _unused_character(messages)
        rendered = self._render(messages, guard, generate=generate)
        ids: list[int] = []
        spans: list[ImageSpan] = []
        for plain, marker in _split(self._markers, rendered):
            ids += self._plain_ids(plain.replace(guard, ""))
            if marker == self._image.placeholder:
                if len(spans) == wanted:
                    raise PromptError(f"the chat template has written more pictures than the {wanted} given")
                start = len(ids)
                ids += self._image_ids(tiles[len(spans)])
                spans.append(ImageSpan(start, len(ids)))
            elif marker is not None:
                ids.append(self._tokens.special[marker])
        if len(spans) != wanted:
            raise PromptError(f"the chat template has written {len(spans)} of {wanted} pictures")
        return Prompt(tuple(ids), tuple(spans))

    def preamble(self) -> tuple[int, ...]:
        """The token ids with which the template begins every conversation that has no system turn."""
        try:
            first, second = (self.build([Message("user", text)], []).ids for text in "ab")
        except PromptError:  # a template that wants something else, a picture for example
            return ()
        return common_start(first, second)

    def picture_tokens(self, tiles: int) -> int:
        """Tokens of a picture of so many tiles, tags and markers included."""
        return len(self._image_ids(tiles))

    def _plain_ids(self, text: str) -> list[int]:
        return self._tokenize(unicodedata.normalize("NFC", text)) if text else []

    def _image_ids(self, tiles: int) -> list[int]:
        """Start marker, then a tag and the image tokens for each tile, the thumbnail last, then the end marker."""
        special = self._tokens.special
        patches = [self._tokens.image_patch] * self._image.tokens_per_tile
        ids = [special[self._image.start]]
        for number in range(1, tiles):
            ids += [*self._tag_ids(f"{self._image.tile}_{number}"), *patches]
        return [*ids, *self._tag_ids(self._image.thumbnail), *patches, special[self._image.end]]

    def _tag_ids(self, tag: str) -> list[int]:
        """A tile's tag: ordinary text in the released tokenizers, but a fine-tuned one may have added it."""
        added = self._tokens.special.get(tag)
        return self._plain_ids(tag) if added is None else [added]

    def _render(self, messages: Sequence[Message], guard: str, *, generate: bool) -> str:
        """The template's text, with `guard` behind every character of a user's text that could begin a marker."""
        turns = []
        for message in messages:
            guarded = self._first_characters.sub(lambda match: match[0] + guard, message.text)
            parts = [{"type": "image"}] * message.images + [{"type": "text", "text": guarded}]
            turns.append({"role": message.role, "content": parts if message.images else guarded})
        rendered = self._template.render(messages=turns, add_generation_prompt=generate, **self._tokens.named)
        try:
            rendered.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error.reason}") from None
        return rendered


def _split(pattern: re.Pattern[str], text: str) -> list[tuple[str, str | None]]:
    """Plain text and the marker that follows it, in turn; the last has none."""
    parts: list[tuple[str, str | None]] = []
    end = 0
    for match in pattern.finditer(text):
        parts.append((text[end : match.start()], match[0]))
        end = match.end()
    return [*parts, (text[end:], None)]


def _unused_character(messages: Sequence[Message]) -> str:
    used = set().union(*(message.text for message in messages))
    for guard in _GUARDS:
        if guard not in used:
            return guard
    raise PromptError("the text holds too many different private-use characters")


def common_start(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """The ids with which both begin."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return tuple(first[:place])
    return tuple(first[: min(len(first), len(second))])
