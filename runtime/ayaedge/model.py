"""What a caller holds: a loaded bundle that answers questions about images."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from ayaedge.answers import Answer
from ayaedge.bundle import Bundle, demo_bundle
from ayaedge.cache.options import CacheOptions
from ayaedge.cache.verified import open_verified
from ayaedge.checks import check_options, function, instance, one_of, path_of, whole_number
from ayaedge.conversation import Conversation, Images, open_conversation
from ayaedge.decoder.options import DecoderOptions, with_context
from ayaedge.engine.dialogue import Dialogue, chat_dialogue
from ayaedge.engine.interface import AnyEngine, OnProgress, no_progress
from ayaedge.engine.loading import EngineOptions, open_engine
from ayaedge.engine.service import Service, answering, encoding, measuring
from ayaedge.engine.streams import AnswerHandle, AnswerRequest, AnswerStream, AsyncAnswerStream
from ayaedge.hardware.devices import Device
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.encoded_image import AnyImage, EncodedImage
from ayaedge.images.load import ImageInput, take_image
from ayaedge.images.tile_budget import TileChoice
from ayaedge.images.tiling import TilePolicy
from ayaedge.options import AnswerKeywords, AnswerOptions, answer_options
from ayaedge.planning.tile_options import TileOption, options_of, prompt_tokens_by_tiles
from ayaedge.text.text_stream import Piece
from ayaedge.vision.session import VisionOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ayaedge.batch.items import BatchItem
    from ayaedge.batch.journal import BatchRow


QUEUE_SIZE = 64
"""Requests that may wait unless asked otherwise."""


class AyaVision:
    """A bundle that is ready to answer; a context manager whose end frees its memory.

        with AyaVision.load("bundle") as model:
            print(model.ask("What is written here?", images=["sign.jpg"]))

    One thread of its own does all the work, so that any number of threads and asyncio tasks may ask: requests are
    done in the order in which they came. Callbacks run on that thread. Nothing is shared between two models; a model
    does not survive a fork of the process.
    """

    def __init__(self, engine: AnyEngine, queue_size: int = QUEUE_SIZE):
        self.bundle: Bundle = engine.bundle
        self._service = Service(engine, queue_size)
        self._counts: Mapping[int, int] = {}

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        device: Device = "auto",
        context: int | None = None,
        decoder: DecoderOptions | None = None,
        vision: VisionOptions | None = None,
        cache: CacheOptions | None = None,
        queue_size: int = QUEUE_SIZE,
        isolated: bool = False,
    ) -> AyaVision:
        """Load a bundle directory; None loads the small demonstration model that ships with the package.

        A mere name, `aya-vision-8b`, that is no directory here is looked for next to a frozen program and in the
        system's directories for data (`ayaedge/bundles`).

        `device` is for both halves, where their own options name none: `auto` takes the best that is installed, and
        puts as much there as fits. `context` is the number of tokens of prompt and answer together, short for
        `DecoderOptions.context_size`. What `ayaedge tune` found for this bundle fills what `decoder` leaves open.
        `cache` says how much is kept of what was computed for an image, and where; `NO_CACHE` keeps nothing beyond
        the last question and asks for no directory. An answer does not depend on it. Beyond `queue_size` waiting
        requests there is BusyError.

        `isolated` runs the model in a process of its own, with everything else the same: for bundles of strangers,
        and for programs that must not end with llama.cpp or ONNX Runtime. Whatever ends that process is BackendError
        here, which says how it ended and what to do; this model is of no use then, and another may be loaded. Where a
        program is frozen it needs `freeze_support`.

        Raises BundleError if the bundle is damaged or its halves do not belong together, InvalidOptionError for a
        device that is missing, with the command that installs it, OutOfMemoryError if the context does not fit,
        BackendError where weights that were to be repacked would end the process, and where an isolated one ends.
        """
        check_options(
            whole_number("queue_size", queue_size, least=1),
            whole_number("context", context, least=2, optional=True),
            one_of("device", device, get_args(Device)),
            instance("decoder", decoder, DecoderOptions, optional=True),
            instance("vision", vision, VisionOptions, optional=True),
            instance("cache", cache, CacheOptions, optional=True),
            instance("isolated", isolated, bool),
        )
        decoder = with_context(decoder or DecoderOptions(), context)
        cache = (cache or CacheOptions()).settled()
        opened = open_verified(demo_bundle() if bundle is None else path_of("bundle", bundle), cache.root)
        options = EngineOptions(device, decoder, vision, cache)
        if not isolated:
            return cls(open_engine(opened, options), queue_size)
        from ayaedge.isolation.engine import open_isolated

        return cls(open_isolated(opened, options), queue_size)

    def __enter__(self) -> AyaVision:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights and caches of both halves; requests that are not finished end with ClosedError.

        Safe at any time, on any thread and more than once. In a callback it returns at once, and the memory is freed
        as soon as the running request has ended.
        """
        self._service.close()

    def ask(
        self,
        question: str,
        *,
        images: Images = (),
        system: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> Answer:
        """The whole answer to a question about any number of images; see `stream` for arguments and errors."""
        return self._once(system).ask(question, images=images, on_progress=on_progress, **options)

    def stream(
        self,
        question: str,
        *,
        images: Images = (),
        system: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> AnswerStream:
        """The answer in pieces of text, as the model writes it. It begins at once, not with the first iteration.

        `images` are paths, `file://` or data URLs, bytes, open binary files, PIL images, arrays (H, W), (H, W, 3) or
        (H, W, 4) uint8, results of `encode_image`, or a single one. Arrays, buffers, PIL images and open files are
        taken before this returns: what happens to them afterwards changes nothing. Named files are read when their
        turn comes. `system` is an instruction before the question. `on_progress` is called with "vision" or
        "prefill", how many tiles or tokens are done, and of how many.

        Options: `max_tokens` of the answer; `temperature` (0, the default: always the same answer), `top_k`, `top_p`,
        `min_p`, `seed`; `stop`, a string or several before which the answer ends; `response_format` (OpenAI's
        `json_object` or `json_schema`, or a pydantic model), `grammar` (GBNF) or `choices` (strings), which the
        answer then follows; `top_logprobs`, how many log-probabilities to keep for each token beside its own. `tiles`
        says how many tiles an image gets, `max_tiles` at most: `faithful` by the reference's rule, whatever the
        image's size; `native` never more than the image has pixels for; `auto` as many as this machine reads in
        `budget` seconds to the first token. `overflow` is for conversations that do not fit: `error`, or
        `drop_oldest`.

        Raises at once InvalidOptionError for a senseless option, PromptError for a question that is no text,
        ImageError for an array, PIL image or open file that is no image, BusyError and ClosedError; from the
        iteration ImageError for any other image that cannot be read, ContextLengthError for a prompt that does not
        fit, PromptError, BackendError, OutOfMemoryError, and CancelledError.
        """
        return self._once(system).stream(question, images=images, on_progress=on_progress, **options)

    def submit(
        self,
        question: str,
        *,
        images: Images = (),
        system: str | None = None,
        on_progress: OnProgress | None = None,
        on_text: Callable[[Piece], object] | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> AnswerHandle:
        """Ask without waiting: the handle has `cancel()`, `result(timeout)`, `done()` and `add_done_callback`.

        `on_text` gets each piece of text, and like `on_progress` it is called on the model's thread. Arguments and
        errors as `stream`.
        """
        return self._once(system).submit(
            question, images=images, on_progress=on_progress, on_text=on_text, **options
        )

    def aask(
        self,
        question: str,
        *,
        images: Images = (),
        system: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> Coroutine[Any, Any, Answer]:
        """The whole answer, for asyncio: `await model.aask(...)`; cancelling the task cancels the answer.

        Images are taken at this call, and the question is asked when it is awaited.
        """
        return self._once(system).aask(question, images=images, on_progress=on_progress, **options)

    def astream(
        self,
        question: str,
        *,
        images: Images = (),
        system: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[AnswerKeywords],
    ) -> AsyncAnswerStream:
        """The answer in pieces of text, for asyncio: `async for piece in model.astream(...)`."""
        return self._once(system).astream(question, images=images, on_progress=on_progress, **options)

    def chat(self, system: str | None = None) -> Conversation:
        """A new conversation; `system` is an instruction before its first question."""
        return Conversation(self._service, system)

    def open_chat(self, path: str | os.PathLike[str]) -> Conversation:
        """A conversation that `Conversation.save` wrote, also one that another model has had.

        Its images are in the file. What was computed for them is used again if this user saved it with the same
        bundle, settings and kind of processor; otherwise the first question takes as long as at first. Raises
        ChatFileError for a file that is damaged, or holds images for another kind of model.
        """
        return open_conversation(self._service, path)

    def encode_image(
        self,
        image: AnyImage,
        *,
        max_tiles: int | None = None,
        tiles: TilePolicy = "faithful",
        budget: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> EncodedImage:
        """Read an image once, to ask about it later, as often as wanted; arguments and errors as `stream`."""
        choice = TileChoice(tiles, max_tiles, budget)
        check_options(function("on_progress", on_progress))
        work = partial(encoding, take_image(image), choice, on_progress or no_progress)
        encoded: EncodedImage = self._service.call(work)
        return encoded

    def count_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        max_tiles: int | None = None,
        tiles: TilePolicy = "faithful",
        budget: float | None = None,
        local_files: Path | Sequence[Path] = (),
    ) -> int:
        """Tokens of the prompt that these messages make, tags and markers of images included.

        `messages` and `local_files` are those of `create_chat_completion`. Does not wait for an answer that
        is being written. Raises PromptError and ImageError.
        """
        choice = TileChoice(tiles, max_tiles, budget)
        return self._engine.count_tokens(chat_dialogue(messages, local_files), choice, self.measure)

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[False] = False,
        local_files: Path | Sequence[Path] = (),
        **options: Any,
    ) -> dict[str, Any]: ...

    @overload
    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: Literal[True],
        local_files: Path | Sequence[Path] = (),
        **options: Any,
    ) -> Iterator[dict[str, Any]]: ...

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        local_files: Path | Sequence[Path] = (),
        **options: Any,
    ) -> dict[str, Any] | Iterator[dict[str, Any]]:
        """OpenAI's chat completion: dictionaries in, a dictionary out, or an iterator of chunks with `stream`.

        Images are parts `{"type": "image_url", "image_url": {"url": ...}}` with a data URL, or
        `{"type": "image", "image": ...}` with anything that `ask` takes. Files are named, by path or `file://` URL,
        only below `local_files`: a directory or several, each a Path. `options` are OpenAI's, with the same
        defaults as `stream`'s, and beside them those of `stream` that OpenAI does not have. InvalidOptionError for
        what is not known or cannot be done.

        If the last message is the assistant's, the model goes on with it: the answer is the text that follows, and
        `stop`, `max_tokens` and the form of the answer are for that text alone. PromptError if the chat template
        changes that message, so that it cannot go on.
        """
        from ayaedge.openai.completions import ChunkMaker, completion
        from ayaedge.openai.options import parse_options

        asked = parse_options({**options, "stream": stream})
        answer = AnswerStream(
            self._complete(chat_dialogue(messages, local_files), answer_options(**asked.options), no_progress)
        )
        name = asked.model or self.bundle.name
        if not asked.stream:
            return completion(answer.result(), model=name)
        return ChunkMaker(model=name, include_usage=asked.include_usage).all_of(answer)

    def astream_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        on_progress: OnProgress | None = None,
        local_files: Path | Sequence[Path] = (),
        **options: Unpack[AnswerKeywords],
    ) -> AsyncAnswerStream:
        """What `create_chat_completion` answers to these messages, in pieces of text, for asyncio.

        `messages` and `local_files` are those of `create_chat_completion`, options and errors those of `stream`.
        """
        check_options(function("on_progress", on_progress))
        dialogue, settled = chat_dialogue(messages, local_files), answer_options(**options)
        return AsyncAnswerStream(self._complete(dialogue, settled, on_progress or no_progress))

    def batch(
        self,
        items: Iterable[AnyImage | BatchItem],
        prompt: str = "",
        *,
        system: str | None = None,
        journal: str | os.PathLike[str] | None = None,
        retries: int = 1,
        max_error_rate: float = 0.5,
        overwrite: bool = False,
        parallel: int | None = None,
        ahead: bool | None = None,
        local_files: Path | Sequence[Path] = (),
        **options: Unpack[AnswerKeywords],
    ) -> Iterator[BatchRow]:
        """The rows of many images, or of `BatchItem`s, in their order; a row that fails says so and is no error.

        In `prompt`, `{name}`, `{stem}`, `{directory}` and `{page}` stand for those of the file. `journal` is a file of
        JSON lines, only appended to: what it answers is not computed again, unless `overwrite`. A row is tried again
        `retries` times where the model failed; BatchError where more than `max_error_rate` of them failed. `parallel`
        answers are written at once; None means 4, as far as memory lasts and if that changes no answer. `ahead` encodes
        the next image meanwhile; None means where that pays. `options` are those of `stream`; `local_files` is for
        requests in OpenAI's form. InvalidOptionError for a bad journal.
        """
        from ayaedge.batch.asking import ask_all

        how = (retries, max_error_rate, overwrite, parallel, ahead)
        return ask_all(self._service, items, prompt, system, local_files, options, journal, *how)

    def tile_options(
        self,
        images: Iterable[ImageInput] | ImageInput,
        *,
        tiles: TilePolicy = "faithful",
        speeds: Speeds | None = None,
    ) -> list[TileOption]:
        """What images would cost at each limit on tiles, the fewest first; limits that change nothing are left out.

        `speeds`, a result of `measure`, gives the seconds. Images whose heads say their sizes are not decoded, none is
        encoded, and an answer that is being written is not waited for. Raises ImageError, InvalidOptionError.
        """
        choice, manifest = TileChoice(tiles), self.bundle.manifest
        self._counts = self._counts or prompt_tokens_by_tiles(self.count_tokens, manifest.tiling)
        return options_of(images, choice, manifest, self._counts, speeds)

    def measure(self) -> Speeds:
        """How fast this machine is with this bundle: remembered, or measured now, behind requests that came before."""
        return self._service.call(measuring)

    @property
    def is_lost(self) -> bool:
        """Whether the process of an isolated model has ended: nothing can be asked any more, and another is loaded."""
        return self._engine.is_lost

    @property
    def _engine(self) -> AnyEngine:
        return self._service.engine

    def _once(self, system: str | None) -> Conversation:
        """A conversation of a single question."""
        return Conversation(self._service, system, goes_on=False)

    def _complete(self, dialogue: Dialogue, options: AnswerOptions, report: OnProgress) -> AnswerRequest:
        return self._service.request(partial(answering, dialogue, options, report))
