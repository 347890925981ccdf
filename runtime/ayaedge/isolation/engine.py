"""An engine that works in a process of its own; see `engine.interface` for what each method does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ayaedge.answers import Answer
from ayaedge.bundle import Bundle
from ayaedge.cache.stores import State
from ayaedge.cancellation import Cancellation
from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.interface import USUAL_LANES, OnProgress, Question, Questions, no_progress
from ayaedge.engine.loading import EngineOptions
from ayaedge.engine.streams import AnswerRequest
from ayaedge.errors import CancelledError
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.encoded_image import AnyImage, EncodedImage
from ayaedge.images.tile_budget import TileChoice
from ayaedge.isolation import forms
from ayaedge.isolation.forms import strictly
from ayaedge.isolation.process import ModelProcess
from ayaedge.isolation.wire import Arrays, WireError
from ayaedge.options import AnswerOptions
from ayaedge.text.text_stream import Piece

_SLICE = 0.02
"""Seconds after which it is looked whether another question waits."""
_FLOAT = 4
_STATE_EXTRA = 1 << 20
"""Bytes of a state beside keys and values; for each position there are some more, which are far below a float each."""


class IsolatedEngine:
    """A loaded bundle in another process; callbacks run in this one, on the thread that asked."""

    def __init__(
        self, process: ModelProcess, bundle: Bundle, root: Path | None, facts: tuple[int, bytes]
    ) -> None:
        self.process, self.bundle, self.cache_root = process, bundle, root
        self.context_size, self.encoder = facts

    @property
    def is_lost(self) -> bool:
        """See `AnyEngine`."""
        return self.process.has_ended

    def answer(
        self,
        request: AnswerRequest,
        dialogue: Dialogue,
        options: AnswerOptions,
        report: OnProgress,
        on_read: Callable[[tuple[EncodedImage, ...]], None] | None = None,
    ) -> Answer:
        """See `AnyEngine`."""
        return self._answer(Question(request, dialogue, options), report, on_read)

    def answer_together(self, questions: Questions, most: int | None, ahead: bool | None) -> None:
        """See `AnyEngine`: the process has as many calls at once, and one more, so that it never waits for the next."""
        count = 1 + (most or USUAL_LANES)
        with ThreadPoolExecutor(count) as pool:
            running: set[Future[None]] = set()
            while True:
                while len(running) < count and (question := questions.take()) is not None:
                    running.add(pool.submit(self._answer_one, question, (most, ahead)))
                if not running:
                    return
                running = wait(running, _SLICE, FIRST_COMPLETED).not_done

    def _answer_one(self, question: Question, together: tuple[int | None, bool | None]) -> None:
        """Answer one of several questions; whatever goes wrong is its own."""
        try:
            question.request.end(self._answer(question, no_progress, None, together), None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the answer is asked for
            question.request.fail(error)

    def _answer(
        self,
        question: Question,
        report: OnProgress,
        on_read: Callable[[tuple[EncodedImage, ...]], None] | None,
        together: tuple[int | None, bool | None] | None = None,
    ) -> Answer:
        """An answer; `together` holds `most` and `ahead` of `answer_together`, if that is to write it."""
        request, dialogue, options = question.request, question.dialogue, question.options
        request.cancellation.check()
        began, pieces, arrays = time.perf_counter(), list[Piece](), Arrays()
        value = {
            "dialogue": forms.dialogue_form(dialogue, arrays),
            "options": replace(options, response_format=None),  # of which the grammar says everything
            "wants_images": on_read is not None,
            "wants_progress": report is not no_progress,
            "together": together,
        }

        def on_event(name: str, form: Any, found: Arrays) -> None:
            if name == "piece":
                pieces.append(strictly(forms.piece_of, form))
                request.give(pieces[-1])
            elif name == "progress":
                report(*strictly(forms.progress_of, form))
            elif name == "read" and on_read is not None:
                on_read(strictly(self._read_images, dialogue, form, found))
            else:
                raise WireError(f"{name!r}")

        def finish(form: Any) -> Answer:
            ending = forms.whole(forms.Ending, form)
            timings = replace(ending.timings, queued=max(began - request.created, 0.0))
            logprobs = tuple(logprob for piece in pieces for logprob in piece.logprobs)
            text, form = "".join(pieces), options.response_format
            ended = (ending.stop_reason, ending.ids, logprobs, form, ending.stop_string)
            return Answer(text, ending.usage, timings, *ended)

        def fail(form: Any) -> BaseException:
            error = forms.error_of(form)
            if isinstance(error, CancelledError) and form.get("ending") is not None:
                error.answer = finish(form["ending"])
            return error

        return self.process.call(
            "answer", value, arrays, read=lambda form, _: finish(form), fail=fail, flag=request.cancellation,
            on_event=on_event, most=len(dialogue.images) * self._most_tiles_bytes,
        )  # fmt: skip

    def encode(
        self, image: AnyImage, choice: TileChoice, flag: Cancellation, report: OnProgress
    ) -> EncodedImage:
        """See `AnyEngine`."""
        flag.check()
        arrays = Arrays()
        value = {"image": forms.image_form(image, arrays), "choice": choice}

        def on_event(name: str, form: Any, _found: Arrays) -> None:
            if name != "progress":
                raise WireError(f"{name!r}")
            report(*strictly(forms.progress_of, form))

        return self.process.call(
            "encode", value, arrays, read=self._read_encoded, flag=flag, on_event=on_event,
            most=self._most_tiles_bytes + self._most_embedding_bytes,
        )  # fmt: skip

    def speeds(self, flag: Cancellation | None = None) -> Speeds:
        """See `AnyEngine`."""
        return self.process.call("speeds", None, read=lambda form, _: forms.whole(Speeds, form), flag=flag)

    def snapshot(self, dialogue: Dialogue) -> tuple[str, int, State] | None:
        """See `AnyEngine`."""
        arrays = Arrays()
        form, decoder = forms.dialogue_form(dialogue, arrays), self.bundle.manifest.decoder
        row = (
            2 * _FLOAT * decoder.hidden_size * decoder.num_layers
        )  # keys and values, each as wide as a token
        return self.process.call(
            "snapshot", form, arrays, read=_read_state, most=2 * row * self.context_size + _STATE_EXTRA
        )

    def adopt(self, dialogue: Dialogue, key: str, count: int, state: State) -> bool:
        """See `AnyEngine`."""
        arrays = Arrays()
        value = {"dialogue": forms.dialogue_form(dialogue, arrays), "key": key, "count": count}
        return self.process.call("adopt", value, [*arrays, state], read=lambda form, _: form is True)

    def count_tokens(self, dialogue: Dialogue, choice: TileChoice, speeds: Callable[[], Speeds]) -> int:
        """See `AnyEngine`."""
        arrays = Arrays()
        form = forms.dialogue_form(dialogue, arrays)
        unread = any(not isinstance(one, EncodedImage) for one in dialogue.images)
        measured = speeds() if choice.policy == "auto" and unread else None
        value = {"dialogue": form, "choice": choice, "speeds": measured}
        return self.process.call("count_tokens", value, arrays, read=lambda found, _: forms.number_of(found))

    def text_ids(self, text: str, ids: Sequence[int]) -> tuple[int, ...] | None:
        """See `AnyEngine`."""
        value = {"text": text, "ids": ids}
        return self.process.call("text_ids", value, read=lambda form, _: forms.ids_of(form))

    def abandon(self) -> None:
        """See `AnyEngine`."""
        self.process.hurry()

    def close(self) -> None:
        """See `AnyEngine`."""
        self.process.close()

    @property
    def _most_tiles(self) -> int:
        return self.bundle.manifest.tiling.max_tiles + 1

    @property
    def _most_tiles_bytes(self) -> int:
        return self._most_tiles * 3 * self.bundle.manifest.tiling.tile_size**2

    @property
    def _most_embedding_bytes(self) -> int:
        manifest = self.bundle.manifest
        return (
            self._most_tiles * manifest.image_prompt.tokens_per_tile * manifest.decoder.hidden_size * _FLOAT
        )

    def _read_images(self, dialogue: Dialogue, form: Any, found: Arrays) -> tuple[EncodedImage, ...]:
        """The last images of a dialogue, those that were new in the tiles that the model has cut."""
        count, costs = form
        given = dialogue.images[len(dialogue.images) - forms.number_of(count) :]
        side = self.bundle.manifest.tiling.tile_size
        cut = (
            forms.tiles_of(cost, tiles, side, self.encoder) for cost, tiles in zip(costs, found, strict=True)
        )
        return tuple(one if isinstance(one, EncodedImage) else next(cut) for one in given)

    def _read_encoded(self, form: Any, found: Arrays) -> EncodedImage:
        tiles, embeddings = found
        manifest = self.bundle.manifest
        image = forms.tiles_of(form, tiles, manifest.tiling.tile_size, self.encoder)
        rows = (image.cost.tiles, manifest.image_prompt.tokens_per_tile, manifest.decoder.hidden_size)
        if embeddings.shape != rows or embeddings.dtype != np.float32:
            raise WireError(f"embeddings of shape {embeddings.shape}")
        return replace(image, embeddings=embeddings)


def open_isolated(bundle: Bundle, options: EngineOptions) -> IsolatedEngine:
    """Load a bundle in a process of its own; errors as `AyaVision.load`, and BackendError if the process dies."""
    process = ModelProcess()
    try:
        value = {
            "directory": bundle.directory.absolute(),
            "manifest": bundle.manifest,
            "stamps": dict(bundle.stamps or {}),  # its files are hashed once, here
            "options": options,
        }
        facts = process.call("load", value, read=_read_facts)
    except BaseException:
        process.close(at_once=True)
        raise
    return IsolatedEngine(process, bundle, options.cache.root, facts)


def _read_facts(form: Any, _found: Arrays) -> tuple[int, bytes]:
    return forms.number_of(form["context_size"]), bytes.fromhex(form["encoder"])


def _read_state(form: Any, found: Arrays) -> tuple[str, int, State] | None:
    if form is None:
        return None
    (key, count), (state,) = form, found
    if type(key) is not str or state.dtype != np.uint8 or state.ndim != 1:
        raise WireError("a state that is none")
    return key, forms.number_of(count), state
