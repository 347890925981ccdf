"""Conversations to token ids: the chat template, the places of images, and text that cannot pose as either.

The ids equal those of the reference's processor. The template decides where turns begin and images go; what
a user writes is plain text, even where it spells a turn marker or an image marker. Other added tokens, as those of a
fine-tune, may stand in any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ayaedge.errors import PromptError
from ayaedge.manifest import Manifest
from ayaedge.text.added_tokens import AddedTokens
from ayaedge.text.longest_match import LongestMatch
from ayaedge.text.template import ChatTemplate

Role = Literal["system", "user", "assistant", "tool"]
_PRIVATE = [chr(code) for code in range(0xF0000, 0xF0100)]
"""Private-use characters, three of which are put into texts while the template is rendered."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str
    images: int = 0
    """Images in this turn; they stand before its text."""
    ids: tuple[int, ...] | None = None
    """The tokens in which the model itself wrote this text; None to tokenise it."""


@dataclass(frozen=True)
class Span:
    """Where something stands in a prompt."""

    start: int
    stop: int
    """Exclusive."""


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the spans among them that belong to images and to earlier answers."""

    ids: tuple[int, ...]
    images: tuple[Span, ...]
    """Of each image: its markers, tile tags and image tokens."""
    answers: tuple[Span, ...] = ()
    """What the model wrote, or would have written, in its earlier turns, but for their last token."""

    @property
    def image_tokens(self) -> int:
        """Tokens inside all spans."""
        return sum(span.stop - span.start for span in self.images)


class PromptBuilder:
    """Builds prompts for one bundle; `tokenize` gives the ids of plain text, recognising no added token."""

    def __init__(self, manifest: Manifest, tokenize: Callable[[str], list[int]]):
        self._tokenize = AddedTokens(manifest.tokens.texts, tokenize).tokenize
        self._tokens = manifest.tokens
        self._image = manifest.image_prompt
        self._template = ChatTemplate(manifest.chat_template)
        markers = [*manifest.tokens.special, manifest.image_prompt.placeholder]
        self._markers = LongestMatch(markers)
        # in either case, because a template may change the case of what it is given
        first = {variant for m in markers for variant in (m[0].upper(), m[0].lower())}
        self._first_characters = re.compile("[" + re.escape("".join(sorted(first))) + "]")

    def build(self, messages: Sequence[Message], tiles: Sequence[int], *, generate: bool = True) -> Prompt:
        """The prompt of a conversation whose images have that many tiles each, in order.

        With `generate` it ends where the answer begins; or, if the last turn is the assistant's, at the end of its
        text, where the model goes on. Raises PromptError if the number of images does not fit, if the template
        refuses the conversation or changes a text that is to go on, or if a text is not valid Unicode.
        """
        for message in messages:
            if not isinstance(message.text, str):
                raise PromptError(f"the text of a turn must be a string, not {type(message.text).__name__}")
        wanted = sum(message.images for message in messages)
        if wanted != len(tiles):
            raise PromptError(f"the conversation has places for {wanted} images, {len(tiles)} were given")
        guard, edge, end = _unused_characters(messages)
        if generate and messages and messages[-1].role == "assistant":
            rendered = self._render_unfinished(messages, guard, edge, end)
        else:
            rendered = self._render(messages, guard, edge, generate=generate)
        ids: list[int] = []
        spans: list[Span] = []
        answers: list[Span] = []
        written = iter([message for message in messages if message.role == "assistant"])
        for plain, marker in _split(self._markers, rendered):
            start = len(ids)
            if plain.count(edge) == 2 and plain[0] == plain[-1] == edge:
                message, text = next(written), plain[1:-1].replace(guard, "")
                verbatim = message.ids if text == message.text else None
                ids += self._tokenize(text) if verbatim is None else verbatim
                answers.append(Span(start, len(ids)))
            else:
                ids += self._tokenize(plain.replace(guard, "").replace(edge, ""))
                for _ in range(plain.count(edge) // 2):
                    next(written)
            if marker == self._image.placeholder:
                if len(spans) == wanted:
                    raise PromptError(f"the chat template has written more images than the {wanted} given")
                start = len(ids)
                ids += self._image_ids(tiles[len(spans)])
                spans.append(Span(start, len(ids)))
            elif marker is not None:
                ids.append(self._tokens.special[marker])
        if len(spans) != wanted:
            raise PromptError(f"the chat template has written {len(spans)} of {wanted} images")
        return Prompt(tuple(ids), tuple(spans), tuple(self._whole_answer(ids, span) for span in answers))

    def preamble(self) -> tuple[int, ...]:
        """The token ids with which the template begins every conversation that has no system turn."""
        try:
            first, second = (self.build([Message("user", text)], []).ids for text in "ab")
        except PromptError:  # a template that wants something else, an image for example
            return ()
        return common_start(first, second)

    def written_ids(self, ids: Sequence[int]) -> tuple[int, ...] | None:
        """Of all tokens of an answer those of its text, for `Message.ids`; None if others are among them."""
        aside = {*self._tokens.hidden, *self._tokens.stop}
        first = next((i for i, token in enumerate(ids) if token not in aside), len(ids))
        last = next((i for i in range(len(ids), first, -1) if ids[i - 1] not in aside), first)
        text = tuple(ids[first:last])
        return None if aside.union(self._tokens.special.values()).intersection(text) else text

    def _whole_answer(self, ids: Sequence[int], text: Span) -> Span:
        """An answer's text with the hidden tokens that the model writes around it, without the stop token."""
        aside = set(self._tokens.hidden) - set(self._tokens.stop)
        start, stop = text.start, text.stop
        while start > 0 and ids[start - 1] in aside:
            start -= 1
        while stop < len(ids) and ids[stop] in aside:
            stop += 1
        return Span(start, stop)

    def tokens_of_image(self, tiles: int) -> int:
        """Tokens of an image of so many tiles, tags and markers included."""
        return len(self._image_ids(tiles))

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
        return self._tokenize(tag) if added is None else [added]

    def _render_unfinished(self, messages: Sequence[Message], guard: str, edge: str, end: str) -> str:
        """The template's text up to the end of the last answer, as if the model were writing it.

        PromptError if the template writes this text in another way, or not behind what it writes for an answer.
        """
        *before, last = messages
        whole = self._render(messages, guard, edge, generate=False)
        marked = self._render([*before, replace(last, text=last.text + end)], guard, edge, generate=False)
        text, _, rest = marked.partition(end)
        plain = text.replace(edge, "")
        opening = self._render_with(before, guard, "", generate=True)
        if (
            text + rest != whole
            or not plain.startswith(opening)
            or not plain.replace(guard, "").endswith(last.text)
        ):
            raise PromptError(
                "the last message is the assistant's, and the chat template of this model changes its text, so that "
                "it cannot go on from there: let a message of the user follow"
            )
        return text + edge * rest.startswith(edge)

    def _render(self, messages: Sequence[Message], guard: str, edge: str, *, generate: bool) -> str:
        """The template's text, with `guard` behind every character of a text that could begin a marker, and `edge`
        around the answers, unless that makes the template write something else.
        """
        plain = self._render_with(messages, guard, "", generate=generate)
        if any(message.role == "assistant" for message in messages):
            edged = self._render_with(messages, guard, edge, generate=generate)
            if edged.replace(edge, "") == plain and edged.count(edge) == 2 * sum(
                message.role == "assistant" for message in messages
            ):
                return edged
        return plain

    def _render_with(self, messages: Sequence[Message], guard: str, edge: str, *, generate: bool) -> str:
        turns = []
        for message in messages:
            text = self._first_characters.sub(lambda match: match[0] + guard, message.text)
            if message.role == "assistant":
                text = edge + text + edge
            parts = [{"type": "image"}] * message.images + [{"type": "text", "text": text}]
            turns.append({"role": message.role, "content": parts if message.images else text})
        rendered = self._template.render(messages=turns, add_generation_prompt=generate, **self._tokens.named)
        try:
            rendered.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error.reason}") from None
        return rendered


def _split(markers: LongestMatch, text: str) -> Iterator[tuple[str, str | None]]:
    """Plain text and the marker that follows it, in turn; the last has none."""
    end = 0
    for first, last in markers.find(text):
        yield text[end:first], text[first:last]
        end = last
    yield text[end:], None


def _unused_characters(messages: Sequence[Message]) -> tuple[str, str, str]:
    """Three characters that no text holds."""
    used = set().union(*(message.text for message in messages))
    unused = [character for character in _PRIVATE if character not in used]
    if len(unused) < 3:
        raise PromptError("the text holds too many different private-use characters")
    return unused[0], unused[1], unused[2]


def common_start(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    """The ids with which both begin."""
    for place, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return tuple(first[:place])
    return tuple(first[: min(len(first), len(second))])
