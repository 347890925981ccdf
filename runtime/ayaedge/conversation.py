"""A conversation: questions that build on each other, their images, and what the model has said.

Each question computes its own tokens only, as long as the model holds the rest; nothing depends on that but time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from ayaedge.answers import Answer, StopReason
from ayaedge.checks import check_options, earlier_name, function, instance, path_of
from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.interface import AnyEngine, OnProgress, no_progress
from ayaedge.engine.service import Service
from ayaedge.engine.streams import AnswerHandle, AnswerRequest, AnswerStream, AsyncAnswerStream
from ayaedge.engine.worker import Request
from ayaedge.errors import CancelledError, ChatFileError, PromptError
from ayaedge.images.encoded_image import AnyImage, EncodedImage
from ayaedge.images.load import list_images, take_image
from ayaedge.images.tile_budget import ImageCost
from ayaedge.options import AnswerKeywords, AnswerOptions, answer_options
from ayaedge.text.prompt import Message
from ayaedge.text.text_stream import Piece

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ayaedge.chat_file.saved_chat import SavedChat, SavedImage, SavedState, SavedTurn

logger = logging.getLogger(__name__)

Images: TypeAlias = Iterable[AnyImage] | AnyImage | None
"""Images of a question: several, one, or none."""


@dataclass(frozen=True)
class Turn:
    """A question and its answer."""

    question: str
    images: tuple[EncodedImage, ...]
    answer: str
    ids: tuple[int, ...] | None = field(default=None, repr=False)
    """The tokens in which the model wrote the answer; None if they are not just its text."""
    stop_reason: StopReason = "stop"

    pictures = earlier_name("pictures", "images")


class Conversation:
    """A conversation with one model; made by `AyaVision.chat`.

    Its questions are answered one after the other, in the order in which they were asked. A question that fails, or
    is cancelled before its first text, leaves the conversation as it was; one that is cancelled later keeps what had
    come.
    """

    def __init__(
        self, service: Service, system: str | None = None, turns: Iterable[Turn] = (), *, goes_on: bool = True
    ) -> None:
        self._service, self._goes_on = service, goes_on
        self.system = system
        """An instruction before the first question, or None."""
        self._turns = tuple(turns)
        self._editing = threading.Lock()
        self._edits = 0

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What was asked and answered, oldest first."""
        return self._turns

    def ask(
        self,
        question: str,
        *,
        images: Images = (),
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> Answer:
        """The whole answer; see `AyaVision.stream` for arguments and errors."""
        return self.stream(question, images=images, on_progress=on_progress, **options).result()

    def stream(
        self,
        question: str,
        *,
        images: Images = (),
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> AnswerStream:
        """The answer in pieces of text, as the model writes it; see `AyaVision.stream`."""
        return AnswerStream(self._request(question, images, on_progress, answer_options(**options)))

    def submit(
        self,
        question: str,
        *,
        images: Images = (),
        on_progress: OnProgress | None = None,
        on_text: Callable[[Piece], object] | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> AnswerHandle:
        """Ask without waiting; see `AyaVision.submit`."""
        listener = _nobody if on_text is None else on_text
        return AnswerHandle(self._request(question, images, on_progress, answer_options(**options), listener))

    def aask(
        self,
        question: str,
        *,
        images: Images = (),
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> Coroutine[Any, Any, Answer]:
        """The whole answer, for asyncio; see `AyaVision.aask`."""
        return self._whole(self._work(question, images, on_progress, answer_options(**options)))

    def astream(
        self,
        question: str,
        *,
        images: Images = (),
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> AsyncAnswerStream:
        """The answer in pieces of text, for asyncio: `async for piece in chat.astream(...)`."""
        return AsyncAnswerStream(self._request(question, images, on_progress, answer_options(**options)))

    def clear(self) -> None:
        """Forget all questions and answers, also the answer that is being written; the system turn stays."""
        with self._editing:
            self._turns, self._edits = (), self._edits + 1

    def undo(self) -> Turn | None:
        """Forget the last question and its answer, and return them; one that is being written is not kept then."""
        with self._editing:
            self._edits += 1
            if not self._turns:
                return None
            *before, last = self._turns
            self._turns = tuple(before)
            return last

    def save(self, path: str | os.PathLike[str], *, state: bool = True) -> None:
        """Write the conversation to a file that only this user may read.

        It holds all texts, the tiles of all images and, with `state`, what the decoder knows of them: 131 kB a
        token for Aya Vision 8B, which makes the next question as quick as if the program had never ended. Waits for
        questions that were asked before. ChatFileError if it cannot be written; a file that was there stays then.
        """
        from ayaedge.cache.user_secret import user_secret
        from ayaedge.chat_file.archive import write_chat

        target = path_of("the file of a conversation", path)
        check_options(instance("state", state, bool))

        def work(engine: AnyEngine, _request: Request[None, None]) -> None:
            root = engine.cache_root
            secret = user_secret(root) if state and root else None
            known = self._known_state(engine) if secret and self._turns else None
            write_chat(target, self._saved(engine, known), secret)

        self._service.call(work)

    def _request(
        self,
        question: str,
        images: Images,
        on_progress: OnProgress | None,
        options: AnswerOptions,
        listener: Callable[[Piece], object] | None = None,
    ) -> AnswerRequest:
        check_options(function("on_text", listener))
        return self._service.request(self._work(question, images, on_progress, options), listener)

    def _work(
        self, question: str, images: Images, on_progress: OnProgress | None, options: AnswerOptions
    ) -> Callable[[AnyEngine, AnswerRequest], Answer]:
        """What the model's thread is to do, with the images as they are now."""
        if not isinstance(question, str):
            raise PromptError(f"a question must be a string, not {type(question).__name__}")
        check_options(function("on_progress", on_progress))
        given = [images] if isinstance(images, EncodedImage) else list_images(images)
        taken = [take_image(image) for image in given]
        report = no_progress if on_progress is None else on_progress
        return partial(self._answer, self.system, question, taken, options, report)

    async def _whole(self, work: Callable[[AnyEngine, AnswerRequest], Answer]) -> Answer:
        stream = AsyncAnswerStream(self._service.request(work))
        del work  # an error's traceback would hold its images
        return await stream.whole()

    def _answer(
        self,
        system: str | None,
        question: str,
        images: list[Any],
        options: AnswerOptions,
        report: OnProgress,
        engine: AnyEngine,
        request: AnswerRequest,
    ) -> Answer:
        """On the model's thread: everything that was asked before is answered now."""
        read: list[EncodedImage] = []
        with self._editing:
            edits, before = self._edits, self._turns

        def keep(answer: Answer) -> None:
            own = tuple(read[len(read) - len(images) :])
            ids = engine.text_ids(answer.text, answer.ids)
            turn = Turn(question, own, answer.text, ids, answer.stop_reason)
            with self._editing:
                if self._edits == edits:
                    self._turns = (*before, turn)

        dialogue = self._dialogue(system, before, [Message("user", question, len(images))], images)
        if not self._goes_on:
            return engine.answer(request, dialogue, options, report)
        try:
            answer = engine.answer(request, dialogue, options, report, read.extend)
        except CancelledError as error:
            if error.answer is not None and error.answer.text:
                keep(error.answer)
            raise
        keep(answer)
        return answer

    def _dialogue(
        self,
        system: str | None,
        turns: Iterable[Turn],
        last: Iterable[Message] = (),
        images: Iterable[Any] = (),
    ) -> Dialogue:
        messages = [Message("system", system)] if system is not None else []
        before: list[EncodedImage] = []
        for turn in turns:
            messages.append(Message("user", turn.question, len(turn.images)))
            messages.append(Message("assistant", turn.answer, ids=turn.ids))
            before += turn.images
        return Dialogue((*messages, *last), (*before, *images), self._goes_on)

    def _known_state(self, engine: AnyEngine) -> SavedState | None:
        from ayaedge.chat_file.saved_chat import SavedState

        found = engine.snapshot(self._dialogue(self.system, self._turns))
        if found is None:
            return None
        return SavedState(*found)

    def _saved(self, engine: AnyEngine, state: SavedState | None) -> SavedChat:
        from ayaedge.chat_file.saved_chat import SavedChat, SavedImage, SavedTurn

        turns = [
            SavedTurn(
                question=turn.question,
                images=tuple(
                    SavedImage.of(image.tiles, (image.cost.width, image.cost.height), _facts(image))
                    for image in turn.images
                ),
                answer=turn.answer,
                ids=turn.ids,
                stop_reason=turn.stop_reason,
            )
            for turn in self._turns
        ]
        return SavedChat(engine.bundle.name, self.system, tuple(turns), state)


def open_conversation(service: Service, path: str | os.PathLike[str]) -> Conversation:
    """See `AyaVision.open_chat`."""
    from ayaedge.cache.user_secret import user_secret
    from ayaedge.chat_file.archive import read_chat

    root = service.engine.cache_root
    file = path_of("the file of a conversation", path)
    check = partial(_check_fits, service.engine, path)
    saved = read_chat(file, user_secret(root) if root else None, check=check)
    turns = [_opened_turn(service.engine, turn) for turn in saved.turns]
    chat = Conversation(service, saved.system, turns)
    if (state := saved.state) is not None:

        def work(engine: AnyEngine, _request: Request[None, bool]) -> bool:
            dialogue = chat._dialogue(chat.system, chat.turns)
            return engine.adopt(dialogue, state.key, state.count, state.data)

        if not service.call(work):
            logger.info("the state in %s is of no use here: its first question computes it anew", path)
    return chat


def _check_fits(engine: AnyEngine, path: str | os.PathLike[str], chat: SavedChat) -> None:
    """ChatFileError for images that are cut in another way than this model's."""
    tiling = engine.bundle.manifest.tiling
    for tiles in (image.tiles for turn in chat.turns for image in turn.images):
        if tiles.shape[1] != tiling.tile_size or len(tiles) > tiling.max_tiles + 1:
            raise ChatFileError(
                f"{path} holds an image in {len(tiles)} tiles of {tiles.shape[1]} pixels, made for another model than "
                f"{engine.bundle.name}"
            )


def _opened_turn(engine: AnyEngine, turn: SavedTurn) -> Turn:
    """A turn of a file; its tokens count only if they mean the same to this model."""
    ids = None if turn.ids is None else engine.text_ids(turn.answer, turn.ids)
    images = tuple(_opened_image(engine, image) for image in turn.images)
    return Turn(turn.question, images, turn.answer, ids, cast("StopReason", turn.stop_reason))


def _opened_image(engine: AnyEngine, image: SavedImage) -> EncodedImage:
    manifest, tiles = engine.bundle.manifest, image.tiles
    grid = [image.facts.get(name) for name in ("columns", "rows")]
    columns, rows = grid if all(isinstance(number, int) for number in grid) else (len(tiles), 1)
    tokens = len(tiles) * manifest.image_prompt.tokens_per_tile
    cost = ImageCost(*image.size, cast("int", columns), cast("int", rows), len(tiles), tokens)
    return EncodedImage(cost, tiles, engine.encoder)


def _facts(image: EncodedImage) -> dict[str, object]:
    return {"columns": image.cost.columns, "rows": image.cost.rows}


def _nobody(_piece: Piece) -> None: ...
