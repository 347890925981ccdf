"""The process of an isolated model: it loads one engine and does what it is told, until nobody listens any more.

One thread reads what comes, so that it may cancel; one works for the engine; one does what need not wait for that.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from ayaedge.bundle import Bundle
from ayaedge.cancellation import Cancellation
from ayaedge.engine.engine import Engine
from ayaedge.engine.interface import Question, no_progress
from ayaedge.engine.loading import EngineOptions, open_engine
from ayaedge.engine.streams import AnswerRequest
from ayaedge.engine.worker import Request
from ayaedge.errors import CancelledError
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.encoded_image import EncodedImage
from ayaedge.images.tile_budget import TileChoice
from ayaedge.isolation import forms
from ayaedge.isolation.records import Records
from ayaedge.isolation.wire import Arrays, Message, SharedMemory, Wire
from ayaedge.manifest import Manifest
from ayaedge.options import AnswerOptions
from ayaedge.untrusted.regular_file import Stamp

logger = logging.getLogger(__name__)

_ASIDE = ("count_tokens", "text_ids")
"""What any thread may ask of an engine."""
_GRACE = 10.0
"""Seconds for what is being done, when nobody listens any more."""
_DIE_WITH_PARENT, _SIGKILL = 1, 9
"""PR_SET_PDEATHSIG of Linux's prctl, and what it then sends."""


class _Call:
    """One call, and what it says on its way."""

    def __init__(self, server: _Server, message: Message, arrays: Arrays) -> None:
        self.number: int = message["call"]
        self.name: str = message["do"]
        self.level: int = message["level"]
        self.value: Any = message["value"]
        self.arrays = arrays
        self.flag = Cancellation()
        self.server = server

    def say(self, event: str, value: Any, arrays: Arrays | None = None) -> None:
        """Let an event be known."""
        self.server.wire.send({"call": self.number, "event": event, "value": value}, arrays or ())

    def end(self, arrays: Arrays | None = None, **outcome: Any) -> None:
        """Give the `result` or the `error`."""
        self.server.wire.send({"call": self.number, **outcome}, arrays or ())


class _Questions:
    """See `Questions`."""

    def __init__(self, following: Callable[[], Question | None]) -> None:
        self._following = following
        self._held: Question | None = None
        """The next one, if it was looked at."""

    def take(self) -> Question | None:
        """See `Questions`."""
        question, self._held = self.peek(), None
        return question

    def peek(self) -> Question | None:
        """See `Questions`."""
        if self._held is None:
            self._held = self._following()
        return self._held


class _Server:
    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._engine: Engine | None = None
        self._own: SimpleQueue[_Call | None] = SimpleQueue()
        self._aside: SimpleQueue[_Call | None] = SimpleQueue()
        self._calls: dict[int, _Call] = {}
        self._here = threading.local()
        self._options: tuple[Any, AnswerOptions] | None = None

    @property
    def engine(self) -> Engine:
        """What was loaded."""
        assert self._engine is not None
        return self._engine

    def run(self) -> None:
        """Do what is told, until nobody listens."""
        self.wire.send({"event": "hello"})  # nothing of what is said from now on is buffered by `sys.stdin`
        records = Records(self._say)
        logging.getLogger("ayaedge").addHandler(records)
        warnings.showwarning = records.warn  # type: ignore[assignment]
        for work in (self._read, partial(self._work, self._aside)):
            threading.Thread(target=work, daemon=True).start()
        # The main thread only waits: on it each tile would be encoded by a thread of its own, for Ctrl-C's sake.
        thread = threading.Thread(target=self._work, args=(self._own,), daemon=True)
        thread.start()
        thread.join()

    def load(self, value: Any) -> dict[str, Any]:
        """Open the engine, and give what is known of it everywhere."""
        options = forms.whole(EngineOptions, value["options"])
        stamps = {name: Stamp(*numbers) for name, numbers in value["stamps"].items()}
        bundle = Bundle(Path(value["directory"]), forms.whole(Manifest, value["manifest"]), stamps)
        self._engine = open_engine(bundle, options)
        return {"context_size": self._engine.context_size, "encoder": self._engine.encoder}

    def options(self, value: Any) -> AnswerOptions:
        """Those of an answer; mostly they are those of the one before, which need not be built and checked anew."""
        if self._options is None or self._options[0] != value:
            self._options = value, forms.whole(AnswerOptions, value)
        return self._options[1]

    def _read(self) -> None:
        with suppress(OSError):
            while (received := self.wire.receive(lambda _: sys.maxsize)) is not None:
                message, arrays = received
                if "cancel" in message:
                    if (running := self._calls.get(message["cancel"])) is not None:
                        running.flag.set()
                    continue
                call = self._calls[message["call"]] = _Call(self, message, arrays)
                (self._aside if call.name in _ASIDE else self._own).put(call)
        for call in list(self._calls.values()):
            call.flag.set()
        self._own.put(None)
        threading.Event().wait(_GRACE)
        os._exit(1)

    def _work(self, queue: SimpleQueue[_Call | None]) -> None:
        while (call := queue.get()) is not None:
            if call.name == "answer" and call.value["together"] is not None:
                queue.put(call)
                logging.getLogger("ayaedge").setLevel(call.level)
                self._answer_together(_Questions(partial(self._take, queue)), *call.value["together"])
                del call  # and its images
                continue
            self._here.call = call.number
            logging.getLogger("ayaedge").setLevel(call.level)
            try:
                _OPERATIONS[call.name](self, call)
            except BaseException as error:  # noqa: BLE001 - raised on the other side
                self._fail(call, error)
            del self._calls[call.number]
            self._here.call = None
            del call  # and its images

    def _answer_together(self, questions: _Questions, most: int | None, ahead: bool | None) -> None:
        try:
            self.engine.answer_together(questions, most, ahead)
        except BaseException as error:  # noqa: BLE001 - raised on the other side, where one waits for each question
            while (question := questions.take()) is not None:
                question.request.fail(error)

    def _take(self, queue: SimpleQueue[_Call | None]) -> Question | None:
        """The next question whose answer may be written beside others, if that is what comes next."""
        with suppress(Empty):
            while True:
                call = queue.get_nowait()
                if call is None or call.name != "answer" or call.value["together"] is None:
                    queue.put(call)  # nothing else comes before it is done
                    return None
                try:
                    return _question(self, call, partial(self._over, call))
                except BaseException as error:  # noqa: BLE001 - raised on the other side
                    self._fail(call, error)
                    del self._calls[call.number]
        return None

    def _over(self, call: _Call, request: AnswerRequest) -> None:
        error = request.exception()
        if error is not None:
            self._fail(call, error)
        else:
            call.end(result=forms.Ending.of(request.result()))
        del self._calls[call.number]

    def _fail(self, call: _Call, error: BaseException) -> None:
        form = forms.error_form(error)
        if isinstance(error, CancelledError) and error.answer is not None:
            form["ending"] = forms.Ending.of(error.answer)
        call.end(error=form)

    def _say(self, event: str, value: Any) -> None:
        with suppress(OSError):
            self.wire.send({"call": getattr(self._here, "call", None), "event": event, "value": value})


def serve(shared: int | None) -> None:
    """Be the process of an isolated model; `shared` is the descriptor of the memory that both share."""
    _die_with_parent()
    source, target = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what libraries print must not come between
    os.close(nothing)
    memory = None if shared is None else SharedMemory(shared)
    with os.fdopen(source, "rb") as stream, suppress(OSError):
        _Server(Wire(stream, partial(os.write, target), memory, trusts=True)).run()
    os._exit(0)  # the weights go with the process


def _die_with_parent() -> None:
    """On Linux, end with the thread that started this process, and before it where memory runs out."""
    if sys.platform != "linux":
        return  # the end of stdin tells, unless a fork of the parent holds its other end
    import ctypes

    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, _SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")


def _load(server: _Server, call: _Call) -> None:
    call.end(result=server.load(call.value))


def _answer(server: _Server, call: _Call) -> None:
    question = _question(server, call)
    dialogue = question.dialogue

    def on_read(images: tuple[EncodedImage, ...]) -> None:
        given = dialogue.images[len(dialogue.images) - len(images) :]
        cut = [one for one, before in zip(images, given, strict=True) if not isinstance(before, EncodedImage)]
        call.say("read", [len(images), [one.cost for one in cut]], [one.tiles for one in cut])

    report = partial(_report, call) if call.value["wants_progress"] else no_progress
    wanted = on_read if call.value["wants_images"] else None
    answer = server.engine.answer(question.request, dialogue, question.options, report, wanted)
    call.end(result=forms.Ending.of(answer))


def _question(server: _Server, call: _Call, over: Callable[[AnswerRequest], None] | None = None) -> Question:
    """What a call asks; `over` is called with its request when that is."""
    dialogue = forms.dialogue_of(call.value["dialogue"], call.arrays)
    request: AnswerRequest = Request(None, lambda piece: call.say("piece", forms.piece_form(piece)))
    request.cancellation = call.flag
    if over is not None:
        request.when_over(partial(over, request))
    return Question(request, dialogue, server.options(call.value["options"]))


def _encode(server: _Server, call: _Call) -> None:
    image, choice = (
        forms.image_of(call.value["image"], call.arrays),
        forms.whole(TileChoice, call.value["choice"]),
    )
    encoded = server.engine.encode(image, choice, call.flag, partial(_report, call))
    assert encoded.embeddings is not None
    call.end([encoded.tiles, encoded.embeddings], result=encoded.cost)


def _speeds(server: _Server, call: _Call) -> None:
    call.end(result=server.engine.speeds(call.flag))


def _snapshot(server: _Server, call: _Call) -> None:
    found = server.engine.snapshot(forms.dialogue_of(call.value, call.arrays))
    call.end([] if found is None else [found[2]], result=found and found[:2])


def _adopt(server: _Server, call: _Call) -> None:
    *arrays, state = call.arrays
    dialogue = forms.dialogue_of(call.value["dialogue"], arrays)
    call.end(result=server.engine.adopt(dialogue, call.value["key"], call.value["count"], state))


def _count_tokens(server: _Server, call: _Call) -> None:
    dialogue = forms.dialogue_of(call.value["dialogue"], call.arrays)
    measured, choice = call.value["speeds"], forms.whole(TileChoice, call.value["choice"])
    call.end(result=server.engine.count_tokens(dialogue, choice, lambda: Speeds(**measured)))


def _text_ids(server: _Server, call: _Call) -> None:
    call.end(result=server.engine.text_ids(call.value["text"], call.value["ids"]))


def _report(call: _Call, step: str, done: int, of: int) -> None:
    call.say("progress", [step, done, of])


_OPERATIONS = {
    "load": _load,
    "answer": _answer,
    "encode": _encode,
    "speeds": _speeds,
    "snapshot": _snapshot,
    "adopt": _adopt,
    "count_tokens": _count_tokens,
    "text_ids": _text_ids,
}
