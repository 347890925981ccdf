"""What a caller holds: a loaded bundle that answers questions about pictures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.decoder import Decoder, DecoderOptions
from ayaedge.errors import AyaEdgeError, ContextLengthError, PromptError, check_options, whole_number
from ayaedge.images import ImageInput, list_images, load_image
from ayaedge.prefixes import KnownPrefix, Segment, common_start, split_prompt
from ayaedge.prompt import Message, Prompt, PromptBuilder
from ayaedge.sampling import Sampler, SamplingOptions, TextStream
from ayaedge.states import CacheOptions
from ayaedge.tiling import split_tiles
from ayaedge.turns import Turns
from ayaedge.vision import VisionEncoder, VisionOptions

StopReason = Literal["stop", "length"]


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
    max_tiles: int | None = None
    """Most tiles of a picture's grid, at most the checkpoint's own limit."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)

    def __post_init__(self) -> None:
        check_options(
            whole_number("max_tokens", self.max_tokens, least=1, optional=True),
            whole_number("max_tiles", self.max_tiles, least=1, optional=True),
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
        self, bundle: Bundle, vision: VisionEncoder, decoder: Decoder, cache: CacheOptions | None = None
    ):
        self.bundle = bundle
        self._vision, self._decoder = vision, decoder
        self._prompts = PromptBuilder(bundle.manifest, decoder.vocabulary.tokenize)
        self._turns = Turns()
        self._prefix = KnownPrefix(decoder, (cache or CacheOptions()).states())
        hashes = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
        self._identity = repr(hashes).encode() + decoder.identity
        self._preamble = self._fixed_preamble()

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        decoder: DecoderOptions | None = None,
        vision: VisionOptions | None = None,
        cache: CacheOptions | None = None,
    ) -> AyaVision:
        """Load a bundle directory; None loads the small demonstration model that ships with the package.

        `cache` says how much is kept of what was computed for a picture, and where; `NO_CACHE` keeps nothing beyond
        the last question. An answer does not depend on it.

        Raises BundleError if the bundle is damaged or its halves do not belong together.
        """
        opened = read_bundle(bundle if bundle is not None else demo_bundle())
        kept = (cache or CacheOptions()).memory_bytes
        encoder = VisionEncoder(opened.vision_path, opened.manifest, vision, keep_bytes=kept)
        try:
            return cls(opened, encoder, Decoder(opened.decoder_path, opened.manifest, decoder), cache)
        except BaseException:
            encoder.close()
            raise

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
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Answer:
        """The whole answer to a question about any number of pictures; see `stream` for arguments and errors."""
        stream = self.stream(
            question, images=images, system=system, max_tokens=max_tokens, max_tiles=max_tiles,
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed,
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
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> AnswerStream:
        """The answer in pieces of text, as the model writes it.

        `images` are paths, bytes, PIL images, arrays or data URLs, or a single one; `system` is an instruction
        before the question. At temperature 0 the answer is always the same. Raises, when iteration begins, ImageError
        for a picture that cannot be read, ContextLengthError for a prompt that does not fit, PromptError and
        BackendError; InvalidOptionError at once for a senseless option.
        """
        sampling = SamplingOptions(temperature, top_p, top_k, seed)
        options = AnswerOptions(max_tokens, max_tiles, sampling)
        pictures = list_images(images)
        messages = [Message("system", system)] if system is not None else []
        messages.append(Message("user", question, len(pictures)))
        return AnswerStream(self._generate(messages, pictures, options), self._turns)

    def _generate(
        self, messages: Sequence[Message], images: Sequence[ImageInput], options: AnswerOptions
    ) -> Generator[str, None, Answer]:
        """1. pictures to tiles  2. prompt  3. what is known of it  4. embeddings and prefill of the rest  5. answer."""
        started = time.perf_counter()
        manifest = self.bundle.manifest
        tiles = [split_tiles(load_image(i), manifest.tiling, max_tiles=options.max_tiles) for i in images]
        prompt = self._prompts.build(messages, [len(part) for part in tiles])
        self._check_length(prompt)
        pictures = [hashlib.sha256(part.tobytes()).digest() for part in tiles]
        segments = split_prompt(prompt, pictures, model=self._identity, preamble=self._preamble)
        read = time.perf_counter()
        known = self._prefix.recall(segments)
        recalled = time.perf_counter()
        left = segments[known:]
        features = {s.picture: self._vision.encode(tiles[s.picture]) for s in left if s.picture is not None}
        encoded = time.perf_counter()
        self._prefill(prompt, left, features)
        prefilled = first = time.perf_counter()

        stream = TextStream(self._decoder.vocabulary, manifest.tokens.hidden)
        ids: list[int] = []
        text: list[str] = []
        reason: StopReason = "length"
        for token in self._tokens(options, len(prompt.ids)):
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
            Usage(len(prompt.ids), prompt.image_tokens, left[0].start, len(ids), tuple(map(len, tiles))),
            Timings(
                vision=read - started + encoded - recalled,
                prefill=recalled - read + prefilled - encoded,
                first_token=first - started,
                decode=time.perf_counter() - first,
            ),
            reason,
            tuple(ids),
        )

    def _tokens(self, options: AnswerOptions, prompt_length: int) -> Iterator[int]:
        """Sampled tokens, up to the limit on tokens and the end of the context."""
        room = self._decoder.context_size - prompt_length
        limit = room if options.max_tokens is None else min(options.max_tokens, room)
        with Sampler(options.sampling) as sampler:
            for number in range(limit):
                token = sampler.sample(self._decoder)
                yield token
                if number + 1 < limit:
                    self._decoder.decode_tokens([token])

    def _fixed_preamble(self) -> tuple[int, ...]:
        """The token ids with which the template begins every conversation that has no system turn."""
        try:
            first, second = (self._prompts.build([Message("user", text)], []).ids for text in "ab")
        except PromptError:  # a template that wants something else, a picture for example
            return ()
        return common_start(first, second)

    def _prefill(
        self, prompt: Prompt, segments: Sequence[Segment], features: Mapping[int, NDArray[np.float32]]
    ) -> None:
        """Text goes to the decoder as tokens; a picture, its tags and markers included, as one run of embeddings."""
        patch = self.bundle.manifest.tokens.image_patch
        for segment in segments:
            ids = prompt.ids[segment.start : segment.stop]
            if segment.picture is None:
                self._decoder.decode_tokens(ids)
            else:
                rows = self._decoder.embed(ids)
                # (n, T, hidden) -> (n*T, hidden)
                rows[np.asarray(ids) == patch] = features[segment.picture].reshape(-1, rows.shape[1])
                self._decoder.decode_embeddings(rows)
            self._prefix.decoded(segment)
            if segment.picture is not None or segment.stop == len(self._preamble):
                self._prefix.keep_state(segment)

    def _check_length(self, prompt: Prompt) -> None:
        available = self._decoder.context_size - 1  # at least one token of answer
        if len(prompt.ids) > available:
            raise ContextLengthError(
                needed=len(prompt.ids), available=available, image_tokens=prompt.image_tokens
            )


def demo_bundle() -> Path:
    """Where the small demonstration model lies that ships with the package."""
    return Path(str(files("ayaedge") / "demo"))
