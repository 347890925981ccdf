"""What a caller holds: a loaded bundle that answers questions about pictures."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.costs import PictureCost, Speeds, TileChoice, picture_cost, tiles_within
from ayaedge.decoder import Decoder, DecoderOptions
from ayaedge.devices import Device
from ayaedge.errors import AyaEdgeError, ContextLengthError, check_options, whole_number
from ayaedge.images import ImageInput, list_images, load_image
from ayaedge.lookup import greedy_with_lookup
from ayaedge.placement import place
from ayaedge.prefixes import KnownPrefix, Segment, split_prompt
from ayaedge.prompt import Message, Prompt, PromptBuilder
from ayaedge.sampling import Sampler, SamplingOptions, TextStream
from ayaedge.states import CacheOptions
from ayaedge.tiling import TilePolicy, split_tiles
from ayaedge.tuning import Profile, load_profile, measure_speeds, profile_path, save_profile
from ayaedge.turns import Turns
from ayaedge.vision import VisionEncoder, VisionOptions, open_encoder

logger = logging.getLogger(__name__)

ANSWER_ROOM = 512
"""Tokens of an answer for which there is memory before it begins; longer ones get more on the way."""

StopReason = Literal["stop", "length"]
OnProgress = Callable[[Literal["vision", "prefill"], int, int], None]
"""Called with the step, how many tiles or tokens of it are done, and of how many."""


@dataclass(frozen=True)
class Usage:
    """What a question and its answer amounted to."""

    prompt_tokens: int
    image_tokens: int
    """Those of the prompt that belong to pictures."""
    cached_tokens: int
    """Those of the prompt that were known and not computed again."""
    completion_tokens: int
    tiles: tuple[int, ...]
    """Tiles of each picture, the thumbnail included."""
    pictures: tuple[PictureCost, ...]
    """Size, grid, tiles and tokens of each picture."""


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds."""

    vision: float
    """Reading and encoding the pictures."""
    prefill: float
    """Recalling what is known of the prompt, and computing the rest."""
    first_token: float
    """From the call to the first token."""
    decode: float
    """All tokens after the first."""
    predicted: float | None
    """What `first_token` was expected to be; None where this machine was not measured with this bundle."""


@dataclass(frozen=True)
class Answer:
    """A finished answer; `str()` gives its text."""

    text: str
    usage: Usage
    timings: Timings
    stop_reason: StopReason
    """`stop`: the model ended its turn; `length`: the limit on tokens or the context's end came first."""
    ids: tuple[int, ...] = field(repr=False)
    """Every token that was generated, the hidden ones and the stop token included."""

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, object]:
        """For JSON: everything but the ids."""
        parts = asdict(self)
        parts.pop("ids")
        return parts


@dataclass(frozen=True)
class AnswerOptions:
    """What a question may set; None means no limit but the context's."""

    max_tokens: int | None = None
    """Most tokens of the answer."""
    tiles: TileChoice = field(default_factory=TileChoice)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)

    def __post_init__(self) -> None:
        check_options(
            whole_number("max_tokens", self.max_tokens, least=1, optional=True),
        )


class AnswerStream:
    """An answer as it comes: iterate over its pieces of text; `answer` is there when the last has come.

    Ends early with `close()`, which leaves the model ready for the next question.
    """

    def __init__(self, pieces: Generator[str, None, Answer], turns: Turns):
        self._pieces, self._turns = pieces, turns
        self._started = self._over = False
        self._answer: Answer | None = None

    def __iter__(self) -> AnswerStream:
        return self

    def __next__(self) -> str:
        if self._over:
            raise StopIteration
        if self._started and not self._turns.holds(self):
            raise AyaEdgeError("this answer cannot go on: another one was begun on the same model since")
        self._turns.enter(self)
        with self._turns.step:
            if self._over:  # by another thread, while this one waited
                self._turns.leave(self)
                raise StopIteration
            self._started = True
            try:
                return next(self._pieces)
            except StopIteration as end:
                self._answer = end.value
                self._end()
                raise
            except BaseException:
                self._end()
                raise

    def close(self) -> None:
        """Stop generating."""
        with self._turns.step:
            self._pieces.close()
        self._end()

    @property
    def answer(self) -> Answer:
        """The whole answer; AyaEdgeError while it is unfinished, or if it was closed before its end."""
        if self._answer is None:
            reason = "was ended early" if self._over else "is not finished: iterate to the end first"
            raise AyaEdgeError(f"the answer {reason}")
        return self._answer

    def _end(self) -> None:
        self._over = True
        self._turns.leave(self)


class AyaVision:
    """A bundle that is ready to answer; a context manager whose end frees its memory.

        with AyaVision.load("bundle") as model:
            print(model.ask("What is written here?", images=["sign.jpg"]))

    One question is answered at a time: a second thread waits for the first one's answer. A model does not survive a
    fork of the process.
    """

    def __init__(
        self,
        bundle: Bundle,
        vision: VisionEncoder,
        decoder: Decoder,
        cache: CacheOptions | None = None,
        profile: Profile | None = None,
    ):
        self.bundle = bundle
        self._vision, self._decoder = vision, decoder
        self._cache, self._profile = cache or CacheOptions(), profile
        self._prompts = PromptBuilder(bundle.manifest, decoder.vocabulary.tokenize)
        self._turns = Turns()
        self._prefix = KnownPrefix(decoder, self._cache.states())
        hashes = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
        self._identity = repr(hashes).encode() + decoder.identity
        self._preamble = self._prompts.preamble()

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        device: Device = "auto",
        decoder: DecoderOptions | None = None,
        vision: VisionOptions | None = None,
        cache: CacheOptions | None = None,
    ) -> AyaVision:
        """Load a bundle directory; None loads the small demonstration model that ships with the package.

        `device` is for both halves, where their own options name none: `auto` takes the best that is installed, and
        puts as much there as fits. What `ayaedge tune` found for this bundle fills what `decoder` leaves open.
        `cache` says how much is kept of what was computed for a picture, and where; `NO_CACHE` keeps nothing beyond
        the last question. An answer does not depend on it.

        Raises BundleError if the bundle is damaged or its halves do not belong together, InvalidOptionError for a
        device that is missing, with the command that installs it.
        """
        opened = read_bundle(bundle if bundle is not None else demo_bundle())
        cache = cache or CacheOptions()
        profile = load_profile(profile_path(cache.root, opened))
        decoder = profile.apply(decoder or DecoderOptions()) if profile else decoder or DecoderOptions()
        decoder, vision = place(opened, device, decoder, vision or VisionOptions())
        with ThreadPoolExecutor(1) as pool:  # the tower warms up while the decoder loads
            loading = pool.submit(
                open_encoder, opened, vision, keep_bytes=cache.embedding_bytes, prepared=cache.prepared()
            )
            with ExitStack() as loaded:
                loaded.callback(_close_result, loading)
                half = loaded.enter_context(Decoder(opened.decoder_path, opened.manifest, decoder))
                model = cls(opened, loading.result(), half, cache, profile)
                loaded.pop_all()
        return model

    def __enter__(self) -> AyaVision:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the weights and caches of both halves; an unfinished answer of any thread ends with an error."""
        self._turns.close()
        with self._turns.step:
            self._vision.close()
            self._decoder.close()

    def ask(
        self,
        question: str,
        *,
        images: Iterable[ImageInput] | ImageInput | None = (),
        system: str | None = None,
        max_tokens: int | None = None,
        max_tiles: int | None = None,
        tiles: TilePolicy = "faithful",
        budget: float | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Answer:
        """The whole answer to a question about any number of pictures; see `stream` for arguments and errors."""
        stream = self.stream(
            question, images=images, system=system, max_tokens=max_tokens, max_tiles=max_tiles, tiles=tiles,
            budget=budget, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, on_progress=on_progress,
        )  # fmt: skip
        for _ in stream:
            pass
        return stream.answer

    def stream(
        self,
        question: str,
        *,
        images: Iterable[ImageInput] | ImageInput | None = (),
        system: str | None = None,
        max_tokens: int | None = None,
        max_tiles: int | None = None,
        tiles: TilePolicy = "faithful",
        budget: float | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> AnswerStream:
        """The answer in pieces of text, as the model writes it.

        `images` are paths, bytes, PIL images, arrays or data URLs, or a single one; `system` is an instruction
        before the question. At temperature 0 the answer is always the same.

        `tiles` says how many tiles a picture gets, `max_tiles` at most: `faithful` by the reference's rule, whatever
        the picture's size; `native` never more than the picture has pixels for; `auto` as many as this machine reads
        in `budget` seconds to the first token. `on_progress` is called with "vision" or "prefill", how many tiles or
        tokens are done, and of how many. Raises, when iteration begins, ImageError
        for a picture that cannot be read, ContextLengthError for a prompt that does not fit, PromptError and
        BackendError; InvalidOptionError at once for a senseless option.
        """
        sampling = SamplingOptions(temperature, top_p, top_k, seed)
        options = AnswerOptions(max_tokens, TileChoice(tiles, max_tiles, budget), sampling)
        pictures = list_images(images)
        messages = [Message("system", system)] if system is not None else []
        messages.append(Message("user", question, len(pictures)))
        return AnswerStream(self._generate(messages, pictures, options, on_progress), self._turns)

    def measure(self) -> Speeds:
        """How fast this machine is with this bundle: what was remembered, or else measured now, in seconds.

        Waits for an answer on another thread; AyaEdgeError while one is unfinished on this thread.
        """
        turn = _Turn()
        self._turns.enter(turn)
        try:
            with self._turns.step:
                return self._speeds()
        finally:
            self._turns.leave(turn)

    def _speeds(self) -> Speeds:
        if self._profile is None:
            self._prefix.forget()
            self._profile = Profile(measure_speeds(self._vision, self._decoder, self.bundle.manifest))
            if self._cache.disk_bytes and self._decoder.options.is_usual:
                save_profile(profile_path(self._cache.root, self.bundle), self._profile)
        return self._profile.speeds

    def _generate(
        self,
        messages: Sequence[Message],
        images: Sequence[ImageInput],
        options: AnswerOptions,
        on_progress: OnProgress | None,
    ) -> Generator[str, None, Answer]:
        """1. pictures to tiles  2. prompt  3. what is known of it  4. embeddings and prefill of the rest  5. answer."""
        manifest, report = self.bundle.manifest, on_progress or _no_progress
        started = time.perf_counter()
        loaded = [load_image(image) for image in images]
        sizes = [(image.shape[1], image.shape[0]) for image in loaded]
        known_speeds, before = self._profile is not None, time.perf_counter()
        choice = self._choose_tiles(options.tiles, sizes)
        if not known_speeds:  # the measurement belongs to no question
            started += time.perf_counter() - before
        costs = tuple(picture_cost(size, manifest, choice) for size in sizes)
        native = choice.policy == "native"
        tiles = [
            split_tiles(image, manifest.tiling, max_tiles=choice.max_tiles, native=native) for image in loaded
        ]
        prompt = self._prompts.build(messages, [len(part) for part in tiles])
        self._check_length(prompt)
        pictures = [hashlib.sha256(self._vision.identity + part.tobytes()).digest() for part in tiles]
        segments = split_prompt(prompt, pictures, model=self._identity, preamble=self._preamble)
        read = time.perf_counter()
        self._decoder.reserve(len(prompt.ids) + min(options.max_tokens or ANSWER_ROOM, ANSWER_ROOM))
        known = self._prefix.recall(segments)
        recalled = time.perf_counter()
        left = segments[known:]
        predicted = self._predict(left, tiles)
        features = self._encode([s.picture for s in left if s.picture is not None], tiles, report)
        encoded = time.perf_counter()
        self._prefill(prompt, left, features, report)
        prefilled = first = time.perf_counter()

        stream = TextStream(self._decoder.vocabulary, manifest.tokens.hidden)
        ids: list[int] = []
        text: list[str] = []
        reason: StopReason = "length"
        for token in self._tokens(options, prompt.ids):
            first = time.perf_counter() if not ids else first
            ids.append(token)
            if token in manifest.tokens.stop:
                reason = "stop"
                break
            if piece := stream.push(token):
                text.append(piece)
                yield piece
        if piece := stream.finish():
            text.append(piece)
            yield piece
        return Answer(
            "".join(text),
            Usage(
                len(prompt.ids), prompt.image_tokens, left[0].start, len(ids), tuple(map(len, tiles)), costs
            ),
            Timings(
                vision=read - started + encoded - recalled,
                prefill=recalled - read + prefilled - encoded,
                first_token=first - started,
                decode=time.perf_counter() - first,
                predicted=predicted,
            ),
            reason,
            tuple(ids),
        )

    def _choose_tiles(self, choice: TileChoice, sizes: Sequence[tuple[int, int]]) -> TileChoice:
        def tokens_of(tiles: int) -> int:
            return self._prompts.picture_tokens(tiles)

        return tiles_within(
            choice,
            sizes,
            self.bundle.manifest.tiling,
            self._speeds,
            tokens_of=tokens_of,
            around=len(self._preamble),
        )

    def _predict(self, left: Sequence[Segment], tiles: Sequence[NDArray[np.uint8]]) -> float | None:
        """Seconds to the first token if these segments are left to compute."""
        if self._profile is None:
            return None
        count = sum(len(tiles[segment.picture]) for segment in left if segment.picture is not None)
        speeds, start = self._profile.speeds, left[0].start
        return count * speeds.tile + speeds.prefill(start, left[-1].stop - start)

    def _encode(
        self, pictures: Sequence[int], tiles: Sequence[NDArray[np.uint8]], report: OnProgress
    ) -> dict[int, NDArray[np.float32]]:
        """The embeddings of these pictures, by number."""
        total, before, features = sum(len(tiles[picture]) for picture in pictures), 0, {}
        for picture in pictures:

            def on_tile(done: int, _of: int, before: int = before) -> None:
                report("vision", before + done, total)

            features[picture] = self._vision.encode(tiles[picture], on_tile=on_tile)
            before += len(tiles[picture])
        return features

    def _tokens(self, options: AnswerOptions, prompt: Sequence[int]) -> Iterator[int]:
        """Sampled tokens, up to the limit on tokens and the end of the context."""
        room = self._decoder.context_size - len(prompt)
        limit = room if options.max_tokens is None else min(options.max_tokens, room)
        drafts = self._decoder.options.draft_tokens
        if drafts and options.sampling.temperature > 0:
            logger.warning(
                "guessing (draft_tokens) is for temperature 0; this answer is drawn token by token"
            )
        elif drafts:
            yield from greedy_with_lookup(
                self._decoder, prompt, self.bundle.manifest.tokens.image_patch, limit
            )
            return
        with Sampler(options.sampling) as sampler:
            for number in range(limit):
                token = sampler.sample(self._decoder)
                yield token
                if number + 1 < limit:
                    self._decoder.decode_tokens([token])

    def _prefill(
        self,
        prompt: Prompt,
        segments: Sequence[Segment],
        features: Mapping[int, NDArray[np.float32]],
        report: OnProgress,
    ) -> None:
        """Text goes to the decoder as tokens; a picture, its tags and markers included, as one run of embeddings."""
        patch = self.bundle.manifest.tokens.image_patch
        start, total = segments[0].start, len(prompt.ids) - segments[0].start

        def on_batch() -> None:
            report("prefill", self._decoder.position - start, total)

        for segment in segments:
            ids = prompt.ids[segment.start : segment.stop]
            if segment.picture is None:
                self._decoder.decode_tokens(ids, on_batch=on_batch)
            else:
                rows = self._decoder.embed(ids)
                # (n, T, hidden) -> (n*T, hidden)
                rows[np.asarray(ids) == patch] = features[segment.picture].reshape(-1, rows.shape[1])
                self._decoder.decode_embeddings(rows, on_batch=on_batch)
            self._prefix.decoded(segment)
            self._prefix.keep_state()

    def _check_length(self, prompt: Prompt) -> None:
        available = self._decoder.context_size - 1  # at least one token of answer
        if len(prompt.ids) > available:
            raise ContextLengthError(
                needed=len(prompt.ids), available=available, image_tokens=prompt.image_tokens
            )


class _Turn:
    """Whoever uses a model without an answer."""


def _close_result(loading: Future[VisionEncoder]) -> None:
    """Close an encoder that was loaded, or is being loaded, for nothing."""
    with suppress(Exception):  # the other half's error is the one that is raised
        loading.result().close()


def _no_progress(step: str, done: int, of: int) -> None: ...


def demo_bundle() -> Path:
    """Where the small demonstration model lies that ships with the package."""
    return Path(str(files("ayaedge") / "demo"))
