"""Both halves of a model and what is remembered between questions; used by one thread, the model's worker.

It does one thing at a time and knows no queue: who asks, and in which order, is decided in `ayaedge.model`.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ayaedge.answers import Answer, Timings, Usage
from ayaedge.bundle import Bundle
from ayaedge.cache.options import CacheOptions
from ayaedge.cache.stores import RecentArrays, State
from ayaedge.cancellation import Cancellation
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.prompt_lookup import greedy_with_lookup
from ayaedge.decoder.sampling import Grammar, Sampler, token_logprob
from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.generation import _Writing
from ayaedge.engine.prefix_cache import KnownPrefix
from ayaedge.engine.segments import Segment, split_prompt
from ayaedge.engine.streams import AnswerRequest
from ayaedge.errors import CancelledError, ContextLengthError, ImageError
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.encoded_image import EncodedImage, Picture, cut_picture
from ayaedge.images.load import ImageInput, load_image
from ayaedge.images.tile_budget import TileChoice, tiles_within
from ayaedge.options import AnswerOptions
from ayaedge.planning.costs import ANSWER_ROOM
from ayaedge.planning.profile import Profile, profile_path, save_profile
from ayaedge.planning.tuning import measure_speeds
from ayaedge.text.prompt import Prompt, PromptBuilder
from ayaedge.text.text_stream import TextStream, TokenLogprob
from ayaedge.vision.encoder import VisionEncoder

logger = logging.getLogger(__name__)


OnProgress = Callable[[Literal["vision", "prefill"], int, int], None]
"""Called on the model's thread with the step, how many tiles or tokens of it are done, and of how many."""


@dataclass(frozen=True)
class _Plan:
    """A dialogue whose prompt is built and fits."""

    prompt: Prompt
    pictures: tuple[EncodedImage, ...]
    segments: list[Segment]
    dropped: int
    """Oldest questions that were left out."""


class Engine:
    """Answers one question after the other."""

    def __init__(
        self,
        bundle: Bundle,
        vision: VisionEncoder,
        decoder: Decoder,
        cache: CacheOptions,
        profile: Profile | None,
    ) -> None:
        self.bundle, self.vision, self.decoder = bundle, vision, decoder
        self._cache, self._profile = cache, profile
        self._piece_of = decoder.vocabulary.piece
        self.prompts = PromptBuilder(bundle.manifest, decoder.vocabulary.tokenize)
        self.prefix = KnownPrefix(decoder, cache.states(), RecentArrays(cache.turn_bytes))
        hashes = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
        self._identity = repr(hashes).encode() + decoder.identity
        self.encoder = repr(hashes).encode() + vision.identity
        """Identifies what decides about a picture's embeddings."""
        self._preamble = self.prompts.preamble()

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
        spelled = b"".join(map(self._piece_of, written)).decode("utf-8", "replace")
        return written if spelled == text else None

    def close(self) -> None:
        """Free the weights and caches of both halves."""
        self.prefix.close()
        self.vision.close()
        self.decoder.close()

    def speeds(self, flag: Cancellation | None = None) -> Speeds:
        """How fast this machine is with this bundle: what was remembered, or else measured now, in seconds."""
        if self._profile is None:
            self.prefix.forget()
            self.decoder.watch(flag or Cancellation())
            self._profile = Profile(measure_speeds(self.vision, self.decoder, self.bundle.manifest))
            if (root := self._cache.root) and self.decoder.options.is_usual:
                save_profile(profile_path(root, self.bundle), self._profile)
        return self._profile.speeds

    def read(
        self,
        pictures: Sequence[Picture],
        choice: TileChoice,
        speeds: Callable[[], Speeds],
        flag: Cancellation | None = None,
    ) -> tuple[EncodedImage, ...]:
        """Pictures in tiles; those that were read before stay as they are. Safe on any thread."""
        manifest, encoder, flag = self.bundle.manifest, self.encoder, flag or Cancellation()
        loaded = [one if isinstance(one, EncodedImage) else _load(one, flag) for one in pictures]
        for place, one in enumerate(loaded, 1):
            if isinstance(one, EncodedImage) and one.encoder != encoder:
                raise ImageError(f"picture {place} was encoded by another model: encode it with this one")
        new = [one for one in loaded if not isinstance(one, EncodedImage)]
        settled = tiles_within(
            choice, [(one.shape[1], one.shape[0]) for one in new], manifest.tiling, speeds,
            tokens_of=self.prompts.picture_tokens, around=len(self._preamble),
        )  # fmt: skip
        found = []
        for one in loaded:
            flag.check()
            if not isinstance(one, EncodedImage):
                one = cut_picture(one, manifest, settled, encoder)
            found.append(one)
        return tuple(found)

    def encode(self, picture: EncodedImage, flag: Cancellation, report: OnProgress) -> EncodedImage:
        """The same picture with its embeddings."""
        flag.check()
        return replace(picture, embeddings=self._embeddings([picture], flag, report)[0])

    def snapshot(self, dialogue: Dialogue) -> tuple[Segment, State] | None:
        """What the decoder knows of a finished dialogue, and up to which segment; None if nothing can be kept."""
        self.decoder.watch(Cancellation())
        return self.prefix.snapshot(self._segments(dialogue))

    def adopt(self, dialogue: Dialogue, key: str, count: int, state: State) -> bool:
        """Take over a state of the first `count` tokens of a dialogue, if it has them and they were made alike."""
        segments = self._segments(dialogue)
        place = next((i for i, one in enumerate(segments, 1) if (one.key, one.stop) == (key, count)), None)
        if place is None or count >= self.decoder.context_size:
            return False
        self.decoder.watch(Cancellation())
        return self.prefix.adopt(segments[:place], state)

    def answer(
        self,
        request: AnswerRequest,
        dialogue: Dialogue,
        options: AnswerOptions,
        report: OnProgress,
        on_read: Callable[[tuple[EncodedImage, ...]], None] | None = None,
    ) -> Answer:
        """1. tiles  2. prompt  3. what is known of it  4. embeddings and prefill of the rest  5. answer.

        `on_read` gets the pictures of the dialogue, those of dropped turns left out. A cancelled answer raises
        CancelledError.
        """
        flag = request.cancellation
        flag.check()
        started = time.perf_counter()
        # opened first: a faulty grammar is said before minutes of work
        grammar = (
            Grammar(options.grammar, self.decoder.vocabulary, self.bundle.manifest.tokens)
            if options.grammar is not None
            else None
        )
        with Sampler(options.sampling, grammar) as sampler:
            self.decoder.watch(flag)
            measured = self._measure_if_needed(options.tiles, dialogue, flag)
            started += measured  # the measurement belongs to no question
            plan = self._plan(dialogue, options, flag)
            if on_read:
                on_read(plan.pictures)
            read = time.perf_counter()
            room = min(options.max_tokens or ANSWER_ROOM, ANSWER_ROOM)
            self.decoder.reserve(len(plan.prompt.ids) + room)
            left = self.prefix.recall(plan.segments)
            recalled = time.perf_counter()
            predicted = self._predict(left, plan.pictures)
            numbers = [segment.picture for segment in left if segment.picture is not None]
            found = self._embeddings([plan.pictures[number] for number in numbers], flag, report)
            encoded = time.perf_counter()
            self._prefill(plan.prompt, left, dict(zip(numbers, found, strict=True)), report)
            prefilled = time.perf_counter()
            writing = _Writing(prefilled, request, self._stream(options), self.bundle.manifest.tokens.stop)
            try:
                reason = writing.follow(self._tokens(sampler, options, plan.prompt.ids, flag))
            except CancelledError:
                reason = "cancelled"
            finally:
                self._note_answer(plan, writing.ids, worth_keeping=dialogue.goes_on)
        text = writing.end()
        if reason == "length" and writing.stopped:
            reason = "stop"
        answer = Answer(
            text,
            Usage(
                prompt_tokens=len(plan.prompt.ids),
                image_tokens=plan.prompt.image_tokens,
                cached_tokens=left[0].start,
                completion_tokens=len(writing.ids),
                tiles=tuple(picture.cost.tiles for picture in plan.pictures),
                pictures=tuple(picture.cost for picture in plan.pictures),
                dropped_turns=plan.dropped,
            ),
            Timings(
                vision=read - started + encoded - recalled,
                prefill=recalled - read + prefilled - encoded,
                first_token=writing.first - started,
                decode=time.perf_counter() - writing.first,
                predicted=predicted,
                queued=max(started - measured - request.created, 0.0),
            ),
            reason,
            tuple(writing.ids),
            tuple(writing.logprobs),
            options.response_format,
        )
        if reason == "cancelled":
            raise CancelledError(answer)
        return answer

    def _measure_if_needed(self, choice: TileChoice, dialogue: Dialogue, flag: Cancellation) -> float:
        """Seconds that went into measuring this machine, because tiles are chosen by time."""
        before = time.perf_counter()
        if choice.policy == "auto" and dialogue.pictures:
            self.speeds(flag)
        return time.perf_counter() - before

    def _plan(self, dialogue: Dialogue, options: AnswerOptions, flag: Cancellation) -> _Plan:
        """The prompt that fits, with the oldest turns left out if that is wanted and needed."""
        pictures = self.read(dialogue.pictures, options.tiles, self.speeds, flag)
        dialogue = replace(dialogue, pictures=pictures)
        prompt, dropped = self._prompt(dialogue), 0
        if options.overflow == "drop_oldest":
            room = min(options.max_tokens or ANSWER_ROOM, self.context_size // 4)
            excess = len(prompt.ids) + room - self.context_size
            if excess > 0 and dialogue.questions:
                dropped = self._turns_to_drop(dialogue, len(prompt.ids), excess, flag)
                dialogue = dialogue.without_oldest(dropped)
                prompt = self._prompt(dialogue)
        available = self.context_size - 1  # at least one token of answer
        if len(prompt.ids) > available:
            raise ContextLengthError(
                needed=len(prompt.ids), available=available, image_tokens=prompt.image_tokens
            )
        kept = tuple(one for one in dialogue.pictures if isinstance(one, EncodedImage))
        return _Plan(prompt, kept, self._split(prompt, kept), dropped)

    def _turns_to_drop(self, dialogue: Dialogue, total: int, excess: int, flag: Cancellation) -> int:
        """How many of the oldest questions to leave out.

        They go in portions of a quarter of the context, so that the next turns of the same conversation leave out the
        same ones, and go on behind what is known.
        """
        portion = max(self.context_size // 4, 1)
        wanted = -(-excess // portion) * portion

        def gone(count: int) -> int:
            flag.check()
            return total - len(self._prompt(dialogue.without_oldest(count)).ids)

        return bisect_left(range(dialogue.questions - 1), wanted, key=gone)

    def _prompt(self, dialogue: Dialogue, *, generate: bool = True) -> Prompt:
        tiles = [one.cost.tiles for one in dialogue.pictures if isinstance(one, EncodedImage)]
        return self.prompts.build(dialogue.messages, tiles, generate=generate)

    def _split(self, prompt: Prompt, pictures: Sequence[EncodedImage]) -> list[Segment]:
        keys = [picture.key for picture in pictures]
        return split_prompt(prompt, keys, model=self._identity, preamble=self._preamble)

    def _segments(self, dialogue: Dialogue) -> list[Segment]:
        """Those of a finished dialogue, the text behind its last answer included."""
        pictures = self.read(dialogue.pictures, TileChoice(), self.speeds)
        return self._split(self._prompt(replace(dialogue, pictures=pictures), generate=False), pictures)

    def _predict(self, left: Sequence[Segment], pictures: Sequence[EncodedImage]) -> float | None:
        """Seconds to the first token if these segments are left to compute."""
        if self._profile is None:
            return None
        count = sum(pictures[one.picture].cost.tiles for one in left if one.picture is not None)
        speeds, start = self._profile.speeds, left[0].start
        return count * speeds.tile + speeds.prefill(start, left[-1].stop - start)

    def _embeddings(
        self, pictures: Sequence[EncodedImage], flag: Cancellation, report: OnProgress
    ) -> list[NDArray[np.float32]]:
        """The embeddings of each picture, (n, T, hidden)."""
        total, before, found = sum(picture.cost.tiles for picture in pictures), 0, []
        for picture in pictures:

            def on_tile(done: int, _of: int, before: int = before) -> None:
                report("vision", before + done, total)
                flag.check()

            if picture.embeddings is None:
                found.append(self.vision.encode(picture.tiles, on_tile=on_tile))
            else:
                found.append(picture.embeddings)
            before += picture.cost.tiles
        return found

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
            report("prefill", self.decoder.position - start, total)

        for segment in segments:
            ids = prompt.ids[segment.start : segment.stop]
            if segment.picture is None:
                self.decoder.decode_tokens(ids, on_batch=on_batch)
            else:
                rows = self.decoder.embed(ids)
                # (n, T, hidden) -> (n*T, hidden)
                rows[np.asarray(ids) == patch] = features[segment.picture].reshape(-1, rows.shape[1])
                self.decoder.decode_embeddings(rows, on_batch=on_batch)
            self.prefix.decoded(segment)
            self.prefix.keep_state()

    def _stream(self, options: AnswerOptions) -> TextStream:
        hidden = {*self.bundle.manifest.tokens.hidden, *self.bundle.manifest.tokens.stop}
        return TextStream(self._piece_of, hidden=hidden, stop=options.stop)

    def _tokens(
        self, sampler: Sampler, options: AnswerOptions, prompt: Sequence[int], flag: Cancellation
    ) -> Iterator[tuple[int, TokenLogprob | None]]:
        """Chosen tokens, up to the limit on tokens and the end of the context."""
        room = self.decoder.context_size - len(prompt)
        limit = room if options.max_tokens is None else min(options.max_tokens, room)
        drafts = self.decoder.options.draft_tokens
        plain = options.sampling.temperature == 0 and options.grammar is None and options.top_logprobs is None
        if drafts and plain:
            patch = self.bundle.manifest.tokens.image_patch
            for token in greedy_with_lookup(self.decoder, prompt, patch, limit):
                yield token, None
                flag.check()
            return
        if drafts:
            logger.warning(
                "guessing (draft_tokens) is for temperature 0 without grammar and log-probabilities; this answer is "
                "chosen token by token"
            )
        for number in range(limit):
            flag.check()
            token, logprob = sampler.sample(self.decoder), None
            if options.top_logprobs is not None:
                logits = self.decoder.last_logits()
                logprob = token_logprob(logits, token, options.top_logprobs, self._piece_of)
            yield token, logprob
            if number + 1 < limit:
                self.decoder.decode_tokens([token])

    def _note_answer(self, plan: _Plan, ids: Sequence[int], *, worth_keeping: bool) -> None:
        """What of an answer the decoder holds is a known prefix of the next question."""
        start = len(plan.prompt.ids)
        if self.decoder.position > start + len(ids):  # guesses beyond the end
            self.decoder.cut(start + len(ids))
        held = max(self.decoder.position - start, 0)
        self.prefix.answered(ids[:held], worth_keeping=worth_keeping)


def _load(picture: ImageInput, flag: Cancellation) -> NDArray[np.uint8]:
    flag.check()
    return load_image(picture)
