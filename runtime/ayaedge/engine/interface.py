"""What a model is to everything above it: the few things that models and conversations ask an engine for.

`engine.engine` does them in this process, `isolation` in one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from ayaedge.answers import Answer
from ayaedge.bundle import Bundle
from ayaedge.cache.stores import State
from ayaedge.cancellation import Cancellation
from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.streams import AnswerRequest
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.encoded_image import AnyImage, EncodedImage
from ayaedge.images.tile_budget import TileChoice
from ayaedge.options import AnswerOptions

USUAL_LANES = 4
"""Answers at once where nobody says how many: on two processors each costs 0.55 of a token more in a step."""

OnProgress: TypeAlias = Callable[[Literal["vision", "prefill"], int, int], None]
"""Called on the model's thread with the step, how many tiles or tokens of it are done, and of how many."""


def no_progress(_step: str, _done: int, _of: int) -> None:
    """Let nobody know: what an engine is given where a caller wants no progress."""


@dataclass(frozen=True)
class Question:
    """What is to be answered, and who waits for it."""

    request: AnswerRequest
    dialogue: Dialogue
    options: AnswerOptions


class Questions(Protocol):
    """Questions that wait for their turn; used on the model's thread."""

    def take(self) -> Question | None:
        """The next one that may begin; None where none waits."""

    def peek(self) -> Question | None:
        """The one that `take` will give unless it is cancelled, which goes on waiting; None where none waits."""


class AnyEngine(Protocol):
    """Both halves of a model. One thread uses it, the model's worker, but where a method says otherwise."""

    @property
    def bundle(self) -> Bundle:
        """What was loaded."""

    @property
    def encoder(self) -> bytes:
        """Identifies what decides about an image's embeddings."""

    @property
    def context_size(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def cache_root(self) -> Path | None:
        """Where files are kept, if any are."""

    @property
    def is_lost(self) -> bool:
        """Whether the process that it is in has ended. Safe on any thread."""

    def answer(
        self,
        request: AnswerRequest,
        dialogue: Dialogue,
        options: AnswerOptions,
        report: OnProgress,
        on_read: Callable[[tuple[EncodedImage, ...]], None] | None = None,
    ) -> Answer:
        """Answer the last question of a dialogue.

        `on_read` gets the images of the dialogue, those of dropped turns left out. A cancelled answer raises
        CancelledError.
        """

    def answer_together(self, questions: Questions, most: int | None, ahead: bool | None) -> None:
        """Answer questions side by side, up to `most` at once, until none is left and none may begin.

        Each request ends with its own answer or error. None for `most` means as many as pay and fit, and none at once
        whose answers would not be those one by one to the bit. `ahead` says whether the next question's images are
        encoded meanwhile; None leaves that to the engine.
        """

    def encode(
        self, image: AnyImage, choice: TileChoice, flag: Cancellation, report: OnProgress
    ) -> EncodedImage:
        """An image with its embeddings."""

    def speeds(self, flag: Cancellation | None = None) -> Speeds:
        """How fast this machine is with this bundle: what was remembered, or else measured now, in seconds."""

    def snapshot(self, dialogue: Dialogue) -> tuple[str, int, State] | None:
        """The state of a finished dialogue, its key and of how many tokens it is; None if nothing can be kept."""

    def adopt(self, dialogue: Dialogue, key: str, count: int, state: State) -> bool:
        """Take over a state of the first `count` tokens of a dialogue, if it has them and they were made alike."""

    def count_tokens(self, dialogue: Dialogue, choice: TileChoice, speeds: Callable[[], Speeds]) -> int:
        """Tokens of a dialogue's prompt. Safe on any thread; `speeds` is called if the choice needs them."""

    def text_ids(self, text: str, ids: Sequence[int]) -> tuple[int, ...] | None:
        """Of all tokens of an answer those of its text; None if they do not spell just that. Safe on any thread."""

    def abandon(self) -> None:
        """Be told that the model is being closed; on any thread, also where garbage is collected."""

    def close(self) -> None:
        """Free the weights and caches of both halves."""
