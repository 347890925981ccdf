"""A request in the one form that all surfaces are turned into, and what a surface is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ayaedge.answers import Answer
from ayaedge.errors import InvalidOptionError
from ayaedge.images.load import image_size
from ayaedge.images.pages import Page
from ayaedge.images.pdf import is_pdf
from ayaedge.images.sources import read_file
from ayaedge.openai.messages import ChatMessage, parse_messages
from ayaedge.openai.options import parse_options
from ayaedge.server.options import Limits
from ayaedge.server.progress import Progress
from ayaedge.server.refusals import RequestRefusedError
from ayaedge.text.text_stream import Piece


def understood(messages: object, options: Mapping[str, Any], local_files: Sequence[Path]) -> Asked:
    """The request that OpenAI's messages and options are; those that nobody knows are ignored."""
    given = parse_options(options, strict=False)
    parsed = parse_messages(messages, trusted=False, local_files=local_files)
    return Asked(
        tuple(parsed), given.options, stream=given.stream, include_usage=given.include_usage, model=given.model
    )  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """One request, whichever surface it came through."""

    messages: tuple[ChatMessage, ...]
    options: Mapping[str, Any]
    """Keywords of `AyaVision.ask`; what was not given is not here."""
    stream: bool = False
    include_usage: bool = False
    """Whether a stream of OpenAI's form ends with the usage."""
    follow: bool = False
    """Whether a stream tells each step of the reading, and not only that there is one."""
    model: str | None = None
    """What the client called the model."""

    def told(self, system: str) -> Asked:
        """The same behind an instruction, if there is one."""
        return replace(self, messages=(ChatMessage("system", system), *self.messages)) if system else self

    def dictionaries(self) -> list[dict[str, Any]]:
        """The messages as `AyaVision.astream_messages` takes them."""
        return [
            {
                "role": message.role,
                "content": [
                    *({"type": "image", "image": image} for image in message.images),
                    {"type": "text", "text": message.text},
                ],
            }
            for message in self.messages
        ]

    def within(self, limits: Limits) -> Asked:
        """The same with its images' files read, none of them decoded; an error for what is beyond the limits."""
        count = sum(len(message.images) for message in self.messages)
        if count > limits.images:
            raise RequestRefusedError(f"a request may have {limits.images} images, not {count}", status=413)
        messages = tuple(
            replace(message, images=tuple(_file(image, limits) for image in message.images))
            for message in self.messages
        )
        return replace(self, messages=messages, options=_within(self.options, limits.tokens))


def _file(image: Any, limits: Limits) -> bytes | Page:
    """An image whose file is read and, unless it is a document, measured: a document is opened when its turn comes."""
    if isinstance(image, Page):
        return Page(_file(image.file, limits), image.number)
    data = read_file(image)
    if len(data) > limits.image_bytes:
        raise RequestRefusedError(
            f"an image has {len(data)} bytes, more than the {limits.image_bytes} that it may have", status=413
        )
    if not is_pdf(data):
        image_size(data, most_pixels=limits.pixels)
    return data


def _within(options: Mapping[str, Any], tokens: int | None) -> Mapping[str, Any]:
    if tokens is None:
        return options
    if options.get("max_tokens", tokens) > tokens:
        raise InvalidOptionError(f"max_tokens must be at most {tokens} here, not {options['max_tokens']}")
    return {"max_tokens": tokens, **options}


class Writer(Protocol):
    """Writes one answer in the form of a surface."""

    media_type: str
    """Of a stream."""

    def whole(self, answer: Answer) -> dict[str, Any]:
        """An answer that is not streamed."""
        ...

    def opening(self) -> bytes:
        """The beginning of a stream."""
        ...

    def of(self, piece: Piece) -> bytes:
        """A piece of the answer."""
        ...

    def closing(self, answer: Answer) -> bytes:
        """The end of a stream."""
        ...

    def alive(self, progress: Progress) -> bytes:
        """A sign of life while there is nothing else to send: how far the reading is."""
        ...

    def failing(self, refusal: RequestRefusedError) -> bytes:
        """The end of a stream that failed after its beginning."""
        ...


class Surface(Protocol):
    """A form of requests and answers that clients speak."""

    def asked(self, body: Mapping[str, Any], local_files: Sequence[Path], /) -> Asked:
        """The request that a body of JSON is; PromptError or InvalidOptionError for what is not understood."""
        ...

    def writer(self, asked: Asked, model: str, /) -> Writer:
        """What writes its answer, by a model of this name."""
        ...

    def names(self, body: Mapping[str, Any], /) -> Mapping[str, str]:
        """What this surface, or this body, calls options that ayaedge calls otherwise: its names by ours."""
        ...

    def fault(self, refusal: RequestRefusedError, body: Mapping[str, Any], /) -> dict[str, Any]:
        """An error as this surface's clients read it."""
        ...
