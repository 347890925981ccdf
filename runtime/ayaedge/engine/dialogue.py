"""What is asked: messages and images, and how they fit into a context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from ayaedge.cancellation import Cancellation
from ayaedge.errors import ContextLengthError
from ayaedge.images.encoded_image import AnyImage, EncodedImage
from ayaedge.images.load import take_image
from ayaedge.options import AnswerOptions
from ayaedge.planning.costs import ANSWER_ROOM
from ayaedge.text.prompt import Message, Prompt, PromptBuilder


@dataclass(frozen=True)
class Dialogue:
    """A conversation up to the question that is to be answered."""

    messages: tuple[Message, ...]
    images: tuple[AnyImage, ...]
    goes_on: bool = False
    """Whether more questions are likely to follow, so that what is known of it is worth keeping."""

    @property
    def questions(self) -> int:
        """How many there are."""
        return sum(message.role == "user" for message in self.messages)

    def without_oldest(self, count: int) -> Dialogue:
        """The same without its `count` oldest questions, their images and their answers; the last one must stay."""
        starts = [i for i, message in enumerate(self.messages) if message.role == "user"]
        first, kept = starts[0], starts[count]
        before = sum(message.images for message in self.messages[:first])
        gone = sum(message.images for message in self.messages[first:kept])
        return replace(
            self,
            messages=self.messages[:first] + self.messages[kept:],
            images=self.images[:before] + self.images[before + gone :],
        )

    @property
    def read_images(self) -> tuple[EncodedImage, ...]:
        """The images; all must be in tiles."""
        assert all(isinstance(image, EncodedImage) for image in self.images)
        return cast("tuple[EncodedImage, ...]", self.images)

    def prompt(self, builder: PromptBuilder, *, generate: bool = True) -> Prompt:
        """Its prompt, if its images are in tiles; without `generate` it ends behind the last message."""
        tiles = [image.cost.tiles for image in self.read_images]
        return builder.build(self.messages, tiles, generate=generate)


def chat_dialogue(messages: Sequence[Mapping[str, Any]], local_files: Path | Sequence[Path]) -> Dialogue:
    """The dialogue that OpenAI's messages are, their images taken; PromptError for what is not understood."""
    from ayaedge.openai.messages import parse_messages  # for callers of this process who speak OpenAI's alone

    parsed = parse_messages(messages, trusted=True, local_files=local_files)
    images = [take_image(image) for message in parsed for image in message.images]
    texts = tuple(Message(message.role, message.text, len(message.images)) for message in parsed)
    goes_on = any(message.role == "assistant" for message in parsed)
    return Dialogue(texts, tuple(images), goes_on)


@dataclass(frozen=True)
class FittedPrompt:
    """A prompt that fits into the context."""

    prompt: Prompt
    images: tuple[EncodedImage, ...]
    """Those that are in it."""
    dropped: int
    """Oldest questions that were left out."""


def fit_prompt(
    dialogue: Dialogue, builder: PromptBuilder, context_size: int, options: AnswerOptions, flag: Cancellation
) -> FittedPrompt:
    """The prompt of a dialogue, with the oldest questions left out if that is wanted and needed.

    Its images must be in tiles. Raises ContextLengthError if it does not fit, with at least one token of answer.
    """
    prompt, dropped = dialogue.prompt(builder), 0
    if options.overflow == "drop_oldest":
        room = min(options.max_tokens or ANSWER_ROOM, context_size // 4)
        excess = len(prompt.ids) + room - context_size
        if excess > 0 and dialogue.questions:
            # In portions of a quarter of the context: the next turns of the same conversation leave out the same
            # questions then, and go on behind what is known.
            portion = max(context_size // 4, 1)
            wanted = -(-excess // portion) * portion
            dropped = _questions_to_drop(dialogue, builder, len(prompt.ids) - wanted, flag)
            dialogue = dialogue.without_oldest(dropped)
            prompt = dialogue.prompt(builder)
    available = context_size - 1
    if len(prompt.ids) > available:
        raise ContextLengthError(
            needed=len(prompt.ids), available=available, image_tokens=prompt.image_tokens
        )
    return FittedPrompt(prompt, dialogue.read_images, dropped)


def _questions_to_drop(dialogue: Dialogue, builder: PromptBuilder, most: int, flag: Cancellation) -> int:
    """How many of the oldest questions to leave out so that at most `most` tokens are left; the last one stays."""

    def saved(count: int) -> int:
        flag.check()
        return -len(dialogue.without_oldest(count).prompt(builder).ids)

    return bisect_left(range(dialogue.questions - 1), -most, key=saved)
