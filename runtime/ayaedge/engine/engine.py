"""Both halves of a model and what is remembered between questions; used by one thread, the model's worker.

It does one thing at a time and knows no queue: who asks, and in which order, is decided in `ayaedge.model`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ayaedge.answers import Answer
from ayaedge.bundle import Bundle
from ayaedge.cache.options import CacheOptions, state_store
from ayaedge.cache.stores import RecentArrays, State
from ayaedge.cancellation import Cancellation
from ayaedge.decoder.acceleration import kernel_of
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.gguf_header import DecoderFigures, read_figures
from ayaedge.decoder.lanes import lanes_agree
from ayaedge.decoder.sampling import Sampler
from ayaedge.engine.ahead import Ahead
from ayaedge.engine.dialogue import Dialogue, fit_prompt
from ayaedge.engine.generation import generate
from ayaedge.engine.interface import OnProgress, Question, Questions, no_progress
from ayaedge.engine.prefix_cache import KnownPrefix
from ayaedge.engine.ready_prompt import Laps, ReadyPrompt
from ayaedge.engine.segments import Segment, split_prompt
from ayaedge.engine.streams import AnswerRequest
from ayaedge.engine.together import answer_together
from ayaedge.errors import BackendError, ContextLengthError, ImageError
from ayaedge.grammar.matcher import GrammarVocabulary, Matcher
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.encoded_image import AnyImage, EncodedImage, cut_image
from ayaedge.images.load import ImageInput, image_size, load_rgb
from ayaedge.images.pages import Page
from ayaedge.images.pdf import PdfReader
from ayaedge.images.tile_budget import TileChoice, image_cost, page_size, tiles_within
from ayaedge.options import AnswerOptions
from ayaedge.planning.costs import ANSWER_ROOM
from ayaedge.planning.profile import Profile, profile_path, save_profile
from ayaedge.planning.tuning import measure_speeds
from ayaedge.text.prompt import Prompt, PromptBuilder
from ayaedge.vision.encoder import VisionEncoder

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Engine:
    """Answers one question after the other."""

    def __init__(
        self,
        bundle: Bundle,
        vision: VisionEncoder,
        decoder: Decoder,
        cache: CacheOptions,
        profile: Profile | None,
        gain: float = 1.0,
    ) -> None:
        bundle.check_unchanged()  # since it was verified, and both halves were loaded
        self.bundle, self.vision, self.decoder = bundle, vision, decoder
        self._cache = cache
        self._kernel, self._gain = kernel_of(decoder.options) or "off", gain
        self._profile = profile if profile and profile.acceleration == self._kernel else None
        self.prompts = PromptBuilder(bundle.manifest, decoder.vocabulary.tokenize)
        self.prefix = KnownPrefix(decoder, state_store(cache), RecentArrays(cache.turn_bytes))
        self._identity = bundle.identity + decoder.identity
        self.encoder = bundle.identity + vision.identity
        """Identifies what decides about an image's embeddings."""
        self._preamble = self.prompts.preamble()
        self.ahead, self._present = Ahead(), list[Segment]()
        vocabulary = decoder.vocabulary
        self._agreed: bool | None = None
        self._forms = GrammarVocabulary(
            vocabulary.size, vocabulary.piece, vocabulary.tokenize, bundle.manifest.tokens
        )

    @property
    def is_lost(self) -> bool:
        """See `AnyEngine`: never, as it is in this process."""
        return False

    @property
    def context_size(self) -> int:
        """Tokens of prompt and answer together."""
        return self.decoder.context_size

    @property
    def cache_root(self) -> Path | None:
        """Where files are kept, if any are."""
        return self._cache.root

    def text_ids(self, text: str, ids: Sequence[int]) -> tuple[int, ...] | None:
        """Of all tokens of an answer those of its text; None if they do not spell just that."""
        written = self.prompts.written_ids(ids)
        if written is None or not all(0 <= token < self.decoder.vocabulary.size for token in written):
            return None
        spelled = b"".join(map(self.decoder.vocabulary.piece, written)).decode("utf-8", "replace")
        return written if spelled == text else None

    def abandon(self) -> None:
        """Nothing to do: the running request is cancelled, and that is enough here."""

    def close(self) -> None:
        """Free the weights and caches of both halves."""
        self.ahead.close()
        self.prefix.close()
        self.vision.close()
        self.decoder.close()

    def speeds(self, flag: Cancellation | None = None) -> Speeds:
        """How fast this machine is with this bundle: what was remembered, or else measured now, in seconds."""
        if self._profile is None:
            self.prefix.forget()
            self._watch(flag or Cancellation())
            found = measure_speeds(self.vision, self.decoder, self.bundle.manifest)
            self._profile = Profile(found, acceleration=self._kernel)
            if (root := self._cache.root) and self.decoder.options.is_usual:
                save_profile(profile_path(root, self.bundle), self._profile)
        return self._profile.speeds

    def read(
        self,
        images: Sequence[AnyImage],
        choice: TileChoice,
        speeds: Callable[[], Speeds],
        flag: Cancellation | None = None,
        *,
        room: int | None = None,
    ) -> tuple[EncodedImage, ...]:
        """Images in tiles; those that were read before stay as they are. Safe on any thread.

        One after the other is decoded and cut, so that there is only one at a time in full size. Pages that need more
        than `room` tokens are a ContextLengthError before any is drawn.
        """
        manifest, encoder, flag = self.bundle.manifest, self.encoder, flag or Cancellation()
        for place, one in enumerate(images, 1):
            if isinstance(one, EncodedImage) and one.encoder != encoder:
                raise ImageError(f"image {place} was encoded by another model: encode it with this one")
        new = [one for one in images if not isinstance(one, EncodedImage)] if choice.policy == "auto" else []
        with PdfReader(flag) as reader:
            size_of = partial(image_size, reader=reader)
            settled = tiles_within(
                choice, [_checked(size_of, one, flag) for one in new], manifest.tiling, speeds,
                tokens_of=self.prompts.tokens_of_image, around=len(self._preamble),
            )  # fmt: skip
            pages = [one for one in images if isinstance(one, Page)]
            if room is not None and pages:
                costs = [image_cost(_checked(size_of, one, flag), manifest, settled) for one in pages]
                _check_room(sum(self.prompts.tokens_of_image(cost.tiles) for cost in costs), room)
            fit = partial(page_size, manifest=manifest, choice=settled)
            load = partial(load_rgb, fit=fit, reader=reader)
            return tuple(
                one
                if isinstance(one, EncodedImage)
                else cut_image(_checked(load, one, flag), manifest, settled, encoder)
                for one in images
            )

    def encode(
        self, image: AnyImage, choice: TileChoice, flag: Cancellation, report: OnProgress
    ) -> EncodedImage:
        """An image with its embeddings."""
        (read,) = self.read([image], choice, self.speeds, flag)
        flag.check()
        self._watch(flag)
        return replace(read, embeddings=self._embeddings([read], flag, report)[0])

    def count_tokens(self, dialogue: Dialogue, choice: TileChoice, speeds: Callable[[], Speeds]) -> int:
        """Tokens of a dialogue's prompt. Safe on any thread."""
        images = self.read(dialogue.images, choice, speeds)
        return len(replace(dialogue, images=images).prompt(self.prompts).ids)

    def snapshot(self, dialogue: Dialogue) -> tuple[str, int, State] | None:
        """The state of a finished dialogue, its key and of how many tokens it is; None if nothing can be kept."""
        self._watch(Cancellation())
        found = self.prefix.snapshot(self._segments(dialogue))
        return None if found is None else (found[0].key, found[0].stop, found[1])

    def adopt(self, dialogue: Dialogue, key: str, count: int, state: State) -> bool:
        """Take over a state of the first `count` tokens of a dialogue, if it has them and they were made alike."""
        segments = self._segments(dialogue)
        place = next((i for i, one in enumerate(segments, 1) if (one.key, one.stop) == (key, count)), None)
        if place is None or count >= self.decoder.context_size:
            return False
        self._watch(Cancellation())
        return self.prefix.adopt(segments[:place], state)

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
        request.cancellation.check()
        laps = Laps()
        with self.open_sampler(options, request.cancellation) as sampler:
            ready = self.prepare(Question(request, dialogue, options), report, laps, on_read)
            return self.write(ready, sampler)

    def answer_together(self, questions: Questions, most: int | None, ahead: bool | None) -> None:
        """See `AnyEngine`."""
        answer_together(self, questions, most, ahead)

    @property
    def encodes_ahead(self) -> bool:
        """Whether both halves gain by working at the same time: on different devices."""
        return (self.vision.device is None) == (self.decoder.gpu_layers > 0)

    def lanes_agree(self, count: int) -> bool:
        """Whether answers side by side are those one by one, to the bit: tried once, with a few tokens."""
        if self._agreed is None:
            self.prefix.forget()
            self._watch(Cancellation())
            self._agreed = not self.decoder.options.draft_tokens and lanes_agree(self.decoder, count)
        return self._agreed

    @cached_property
    def figures(self) -> DecoderFigures:
        """What the header of decoder.gguf says."""
        return read_figures(self.bundle.decoder_path)

    def open_sampler(self, options: AnswerOptions, flag: Cancellation) -> Sampler:
        """What chooses an answer's tokens; a faulty grammar is said here, before minutes of work."""
        matcher = None if options.grammar is None else Matcher(options.grammar, self._forms, flag.check)
        return Sampler(options.sampling, matcher)

    def prepare(
        self,
        question: Question,
        report: OnProgress,
        laps: Laps,
        on_read: Callable[[tuple[EncodedImage, ...]], None] | None = None,
        on_encoded: Callable[[], None] | None = None,
    ) -> ReadyPrompt:
        """Let the decoder hold a question's prompt, with nothing of the answer yet.

        `on_encoded` is called when the vision tower has nothing more to do for it.
        """
        flag, dialogue, options = question.request.cancellation, question.dialogue, question.options
        self._watch(flag)
        laps.end("vision")
        if options.tiles.policy == "auto" and dialogue.images:
            self.speeds(flag)
        laps.end("measurement")  # of the machine: belongs to no question
        # 1. Images are cut into tiles, and the prompt is built.
        dialogue = self._in_tiles(dialogue, options, flag)
        fitted = fit_prompt(dialogue, self.prompts, self.context_size, options, flag)
        segments = self._present = self._split(fitted.prompt, fitted.images)
        if on_read:
            on_read(fitted.images)
        laps.end("vision")
        # 2. What is known of the prompt goes to the decoder.
        self.decoder.reserve(len(fitted.prompt.ids) + options.answer_room(ANSWER_ROOM))
        left = self.prefix.recall(segments)
        laps.end("prefill")
        # 3. The images of the rest are encoded.
        predicted = self._predict(left, fitted.images)
        numbers = [segment.image for segment in left if segment.image is not None]
        found = self._embeddings([fitted.images[number] for number in numbers], flag, report)
        laps.end("vision")
        if on_encoded:
            on_encoded()
        # 4. The rest goes to the decoder.
        self._prefill(fitted.prompt, left, dict(zip(numbers, found, strict=True)), report)
        laps.end("prefill")
        fitted = replace(fitted, images=tuple(replace(image, embeddings=None) for image in fitted.images))
        return ReadyPrompt(question, fitted, left[0].start, laps, predicted, self._kernel, self._gain)

    def write(self, ready: ReadyPrompt, sampler: Sampler) -> Answer:
        """Write the answer to a prompt that the decoder holds; CancelledError if it is cancelled."""
        question = ready.question
        # 5. The answer is written.
        try:
            written = generate(
                self.decoder, self.prefix, sampler, ready.fitted.prompt.ids, self.bundle.manifest.tokens,
                question.options, question.request, goes_on=question.dialogue.goes_on,
            )  # fmt: skip
        except BackendError:
            self.prefix.forget()  # NaN stays in the cache, and zero times NaN would spoil the next prompt too
            raise
        return ready.answer(written)

    def look_ahead(self, question: Question) -> None:
        """Have the images of a question that comes next encoded, while the decoder works on the present one."""
        self.ahead.begin(question, self._encode_ahead)

    def _encode_ahead(self, question: Question) -> Question:
        """The same with its images in tiles, and with embeddings as far as its prompt is likely to need them.

        On a thread of its own, while the decoder works on a prompt of which `_present` are the segments.
        """
        flag, options = question.request.cancellation, question.options
        if options.tiles.policy == "auto" and self._profile is None:
            return question  # the machine is measured first
        dialogue = self._in_tiles(question.dialogue, options, flag)
        fitted = fit_prompt(dialogue, self.prompts, self.context_size, options, flag)
        left = self.prefix.foresee(self._split(fitted.prompt, fitted.images), self._present)
        needed = [fitted.images[segment.image] for segment in left if segment.image is not None]
        self.vision.watch(flag)
        found = dict(zip(map(id, needed), self._embeddings(needed, flag, no_progress), strict=True))
        images = (replace(one, embeddings=found.get(id(one))) for one in dialogue.read_images)
        return replace(question, dialogue=replace(dialogue, images=tuple(images)))

    def _in_tiles(self, dialogue: Dialogue, options: AnswerOptions, flag: Cancellation) -> Dialogue:
        room = None if options.overflow == "drop_oldest" else self.context_size
        images = self.read(dialogue.images, options.tiles, self.speeds, flag, room=room)
        return replace(dialogue, images=images)

    def _watch(self, flag: Cancellation) -> None:
        """Let this flag end what either half computes."""
        self.vision.watch(flag)
        self.decoder.watch(flag)

    def _split(self, prompt: Prompt, images: Sequence[EncodedImage]) -> list[Segment]:
        keys = [image.key for image in images]
        return split_prompt(prompt, keys, model=self._identity, preamble=self._preamble)

    def _segments(self, dialogue: Dialogue) -> list[Segment]:
        """Those of a finished dialogue, the text behind its last answer included."""
        images = self.read(dialogue.images, TileChoice(), self.speeds)
        prompt = replace(dialogue, images=images).prompt(self.prompts, generate=False)
        return self._split(prompt, images)

    def _predict(self, left: Sequence[Segment], images: Sequence[EncodedImage]) -> float | None:
        """Seconds to the first token if these segments are left to compute."""
        if self._profile is None:
            return None
        count = sum(images[one.image].cost.tiles for one in left if one.image is not None)
        speeds, start = self._profile.speeds, left[0].start
        return count * speeds.tile + speeds.prefill(start, left[-1].stop - start)

    def _embeddings(
        self, images: Sequence[EncodedImage], flag: Cancellation, report: OnProgress
    ) -> list[NDArray[np.float32]]:
        """The embeddings of each image, (n, T, hidden)."""
        total, before, found = sum(image.cost.tiles for image in images), 0, []
        for image in images:

            def on_tile(done: int, _of: int, before: int = before) -> None:
                report("vision", before + done, total)
                flag.check()

            if image.embeddings is None:
                found.append(self.vision.encode(image.tiles, on_tile=on_tile))
            else:
                found.append(image.embeddings)
            before += image.cost.tiles
        return found

    def _prefill(
        self,
        prompt: Prompt,
        segments: Sequence[Segment],
        features: Mapping[int, NDArray[np.float32]],
        report: OnProgress,
    ) -> None:
        """Text goes to the decoder as tokens; an image, its tags and markers included, as one run of embeddings."""
        patch = self.bundle.manifest.tokens.image_patch
        start, total = segments[0].start, len(prompt.ids) - segments[0].start

        def on_batch() -> None:
            report("prefill", self.decoder.position - start, total)

        for segment in segments:
            ids = prompt.ids[segment.start : segment.stop]
            if segment.image is None:
                self.decoder.decode_tokens(ids, on_batch=on_batch)
            else:
                rows = self.decoder.embed(ids)
                # (n, T, hidden) -> (n*T, hidden)
                rows[np.asarray(ids) == patch] = features[segment.image].reshape(-1, rows.shape[1])
                self.decoder.decode_embeddings(rows, on_batch=on_batch)
            self.prefix.decoded(segment)
            self.prefix.keep_state()


def _check_room(needed: int, room: int) -> None:
    if needed >= room:
        raise ContextLengthError(needed=needed, available=room - 1, image_tokens=needed)


def _checked(read: Callable[[ImageInput], T], image: ImageInput, flag: Cancellation) -> T:
    flag.check()
    return read(image)
