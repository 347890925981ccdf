"""A model in a process of its own has the same API, and whatever ends its process does not end this one."""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pytest
from PIL import Image
from pydantic import BaseModel

from ayaedge import (
    NO_CACHE,
    AyaEdgeError,
    AyaVision,
    BackendError,
    BundleError,
    CancelledError,
    ClosedError,
    ContextLengthError,
    DecoderOptions,
    InvalidOptionError,
    VisionOptions,
    read_bundle,
)
from ayaedge.bundle import demo_bundle
from ayaedge.engine.dialogue import Dialogue
from ayaedge.engine.interface import Question, no_progress
from ayaedge.engine.worker import Request
from ayaedge.isolation import process
from ayaedge.isolation.engine import IsolatedEngine
from ayaedge.isolation.wire import SharedMemory
from ayaedge.options import answer_options
from ayaedge.text.prompt import Message

CELLS = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
QUESTION = "Describe the picture."
SOON = 60.0
needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has exit codes instead of signals")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture(scope="module")
def apart() -> Iterator[AyaVision]:
    with AyaVision.load(isolated=True) as model:
        yield model


@pytest.fixture(params=["here", "apart"])
def model(request: pytest.FixtureRequest, demo_model: AyaVision, apart: AyaVision) -> AyaVision:
    return demo_model if request.param == "here" else apart


def pid_of(model: AyaVision) -> int:
    pid: int = model._engine.process.pid
    return pid


def is_gone(pid: int) -> bool:
    """Whether there is no such process, not even one that nobody has waited for."""
    return not psutil.pid_exists(pid)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_ends_answers_side_by_side_ends_neither_the_process_nor_the_wait(apart: AyaVision) -> None:
    before, engine = pid_of(apart), apart._engine
    assert isinstance(engine, IsolatedEngine)
    question = Question(Request(), Dialogue((Message("user", "?", 0),), ()), answer_options(max_tokens=2))
    with pytest.raises(BackendError, match="not supported between instances of 'int' and 'str'"):
        engine._answer(question, no_progress, None, ("many", None))  # type: ignore[arg-type]
    assert apart.ask("?", max_tokens=2).ids
    assert pid_of(apart) == before


class Animal(BaseModel):
    kind: Literal["cat", "dog"]


class TestTheSameApi:
    def test_answers_are_the_same_in_every_respect(self, demo_model: AyaVision, apart: AyaVision) -> None:
        drawn = {"temperature": 1.0, "seed": 3, "max_tokens": 9}
        for options in ({}, {"top_logprobs": 2}, drawn, {"stop": ["7"]}):
            one, other = (m.ask(QUESTION, images=[CELLS], **options) for m in (demo_model, apart))
            assert (one.text, one.ids, one.stop_reason) == (other.text, other.ids, other.stop_reason)
            assert one.stop_string == other.stop_string == options.get("stop", [None])[0]
            assert one.usage.images == other.usage.images
            assert [one.id for one in one.logprobs] == [one.id for one in other.logprobs]
            assert [[top.data for top in one.top] for one in one.logprobs] == [
                [top.data for top in one.top] for one in other.logprobs
            ]

    def test_pieces_join_to_the_answer_and_know_their_tokens(self, model: AyaVision) -> None:
        stream = model.stream(QUESTION, images=[CELLS], top_logprobs=1)
        pieces = list(stream)
        assert "".join(pieces) == stream.answer.text
        assert [one for piece in pieces for one in piece.logprobs] == list(stream.answer.logprobs)
        assert sum(len(piece.ids) for piece in pieces) <= len(stream.answer.ids)
        assert len(pieces) > 5

    def test_every_kind_of_image_is_taken(self, model: AyaVision) -> None:
        with Image.open(CELLS) as opened, CELLS.open("rb") as file:
            array, data = np.asarray(opened.convert("RGB")), CELLS.read_bytes()
            kinds = [CELLS, str(CELLS), CELLS.as_uri(), data, io.BytesIO(data), file, opened, array]
            kinds += [model.encode_image(array), np.array(array[::-1])[::-1], bytearray(data)]
            answers = {model.ask(QUESTION, images=[kind]).text for kind in kinds}
        assert answers == {"circle: red, 4098, star: green, 2675, heart: yellow, triangle: black"}

    def test_an_array_may_be_overwritten_at_once(self, model: AyaVision) -> None:
        with Image.open(CELLS) as opened:
            array = np.array(opened.convert("RGB"))
        handle = model.submit(QUESTION, images=[array])
        array[:] = 0
        assert "2675" in handle.result(SOON).text

    def test_conversations_go_on_and_are_saved(self, model: AyaVision, tmp_path: Path) -> None:
        chat = model.chat(system="Answer briefly.")
        first = chat.ask("What number is at the bottom left?", images=[CELLS])
        assert (first.text, chat.ask("右下の形は何ですか？").usage.cached_tokens > 100) == ("2675", True)
        assert chat.turns[0].images[0].tiles.shape == (7, 56, 56, 3)
        assert chat.turns[0].ids is not None
        chat.save(tmp_path / "chat")
        undone = chat.undo()
        assert undone is not None
        assert len(chat.turns) == 1
        opened = model.open_chat(tmp_path / "chat")
        assert opened.turns[1].answer == undone.answer
        assert opened.ask("What shape is at the top right?").text == "star"

    def test_the_state_of_a_saved_conversation_is_used_by_the_other_kind(
        self, demo_model: AyaVision, apart: AyaVision, tmp_path: Path
    ) -> None:
        for number, (one, other) in enumerate([(demo_model, apart), (apart, demo_model)]):
            chat = one.chat(system=f"{number}")
            first = chat.ask("What is it?", max_tokens=4)  # within the window, so that the state is whole
            chat.save(tmp_path / "chat")
            other.ask("What?", max_tokens=1)  # which nobody misses, unlike a conversation
            opened = other.open_chat(tmp_path / "chat")
            answer = opened.ask("And that?", max_tokens=1)
            assert answer.usage.cached_tokens >= first.usage.prompt_tokens

    def test_answers_follow_a_form(self, model: AyaVision) -> None:
        assert isinstance(model.ask("What is it?", response_format=Animal).parse(), Animal)
        assert model.ask("What is it?", choices=["yes", "no"]).text in ("yes", "no")
        assert model.ask("What is it?", grammar='root ::= "a" "b"').text == "ab"

    def test_chat_completions(self, model: AyaVision) -> None:
        content = [{"type": "image", "image": CELLS.read_bytes()}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}]
        whole = model.create_chat_completion(messages, logprobs=True, top_logprobs=1)
        parts = list(model.create_chat_completion(messages, stream=True))
        text = "".join(part["choices"][0]["delta"].get("content") or "" for part in parts)
        assert whole["choices"][0]["message"]["content"] == text
        assert len(whole["choices"][0]["logprobs"]["content"]) > 5
        assert model.count_tokens(messages) == whole["usage"]["prompt_tokens"]

    def test_callbacks_run_on_the_models_thread_in_this_process(self, model: AyaVision) -> None:
        seen: list[Any] = []

        def note(*what: Any) -> None:
            seen.append((os.getpid(), threading.current_thread(), what))

        image = np.random.default_rng().integers(0, 256, (100, 300, 3), np.uint8)
        model.submit(QUESTION, images=[image], on_progress=note, on_text=note).result(SOON)
        assert {one[:2] for one in seen} == {(os.getpid(), model._service._worker._thread)}
        stages = [one[2][0] for one in seen if len(one[2]) == 3]
        assert stages == sorted(stages, reverse=True)
        assert {"vision", "prefill"} == set(stages)

    def test_what_a_callback_raises_ends_the_answer_and_nothing_else(self, model: AyaVision) -> None:
        def fail(*_: Any) -> None:
            raise ZeroDivisionError

        for callbacks in ({"on_text": fail}, {"on_progress": fail}):
            with pytest.raises(ZeroDivisionError):
                model.submit(QUESTION, images=[CELLS], **callbacks).result(SOON)
        assert "2675" in model.ask(QUESTION, images=[CELLS]).text

    def test_a_callback_may_count_tokens_and_must_not_wait(self, model: AyaVision) -> None:
        found: list[Any] = []

        def ask(_: Any) -> None:
            found.append(model.count_tokens([{"role": "user", "content": "How many?"}]))
            with pytest.raises(AyaEdgeError, match="own thread"):
                model.ask("x")

        model.submit("What is it?", max_tokens=3, on_text=ask).result(SOON)
        assert found
        assert set(found) == {found[0]}

    @pytest.mark.parametrize("way", ["cancel", "close", "drop", "asyncio"])
    def test_an_answer_is_cancelled_and_the_next_one_is_right(self, model: AyaVision, way: str) -> None:
        if way == "cancel":
            # Long enough not to be over when the cancel comes to the other process.
            long = "root ::= [ab]{1000}"
            handle = model.submit(QUESTION, images=[CELLS], on_text=lambda _: handle.cancel(), grammar=long)
            error = handle.exception(SOON)
            assert isinstance(error, CancelledError)
            assert error.answer is not None
            assert error.answer.stop_reason == "cancelled"
            assert len(error.answer.ids) > 0
        elif way == "asyncio":
            with pytest.raises(asyncio.TimeoutError):
                asyncio.run(asyncio.wait_for(model.aask(QUESTION, images=[CELLS]), 0.001))
        else:
            stream = model.stream(QUESTION, images=[CELLS])
            next(stream)
            if way == "close":
                stream.close()
            del stream
            gc.collect()
        assert "2675" in model.ask(QUESTION, images=[CELLS]).text

    def test_asyncio_gets_the_pieces(self, model: AyaVision) -> None:
        async def ask() -> str:
            return "".join([piece async for piece in model.astream(QUESTION, images=[CELLS])])

        assert "2675" in asyncio.run(ask())

    def test_errors_are_the_same(self, demo_model: AyaVision, apart: AyaVision) -> None:
        other = np.random.default_rng(0).integers(0, 256, (1, 56, 56, 3), np.uint8)
        foreign = demo_model.encode_image(other[0])
        object.__setattr__(foreign, "encoder", b"another")
        asked: list[dict[str, Any]] = [
            {"question": "x " * 4000},
            {"question": "x", "images": ["nowhere.png"]},
            {"question": "x", "images": [b"no image"]},
            {"question": "x", "images": [3.5]},
            {"question": "x", "images": [foreign]},
            {"question": "\ud800"},
            {"question": "x", "grammar": "root ::= (" * 3},
        ]
        for arguments in asked:
            errors = []
            for model in (demo_model, apart):
                with pytest.raises(AyaEdgeError) as caught:
                    model.ask(**arguments)
                errors.append(caught.value)
            assert type(errors[0]) is type(errors[1])
            assert str(errors[0]) == str(errors[1])
            assert vars(errors[0]) == vars(errors[1])
        assert isinstance(errors[-1], (InvalidOptionError, AyaEdgeError))
        with pytest.raises(ContextLengthError) as long:
            apart.ask("x " * 4000)
        assert long.value.needed > long.value.available > 0

    def test_many_threads_ask_at_once(self, model: AyaVision) -> None:
        handles = [model.submit("What is it?", max_tokens=4, seed=n, temperature=1) for n in range(8)]
        alone = [model.ask("What is it?", max_tokens=4, seed=n, temperature=1).ids for n in range(8)]
        assert [handle.result(SOON).ids for handle in handles] == alone

    def test_rows_of_a_batch_are_written_side_by_side(
        self, demo_model: AyaVision, apart: AyaVision, tmp_path: Path
    ) -> None:
        (tmp_path / "broken.png").write_bytes(b"x")
        images = [
            CELLS,
            tmp_path / "broken.png",
            *(CELLS.with_name(f"one-{name}.png") for name in ("heart", "number")),
        ]
        rows, expected = (
            [
                (row.path, row.answer, row.error)
                for row in model.batch(images, QUESTION, parallel=count, ahead=ahead, max_tokens=12)
            ]
            for model, count, ahead in ((apart, 3, True), (demo_model, 1, False))
        )
        assert rows == expected
        assert apart.ask("What is it?", max_tokens=4).text == demo_model.ask("What is it?", max_tokens=4).text

    def test_speeds_are_measured(self, apart: AyaVision) -> None:
        assert apart.measure() == apart.measure()
        content = [{"type": "image", "image": CELLS.read_bytes()}]
        few = apart.count_tokens([{"role": "user", "content": content}], tiles="auto", budget=1e-6)
        assert few < apart.count_tokens([{"role": "user", "content": content}])

    def test_records_of_the_process_come_to_the_loggers_here(
        self, apart: AyaVision, caplog: pytest.LogCaptureFixture
    ) -> None:
        apart.ask("What is it?", max_tokens=2)
        assert not caplog.records
        with (
            caplog.at_level(logging.DEBUG, "ayaedge.llama"),
            AyaVision.load(isolated=True, decoder=DecoderOptions(draft_tokens=4)) as guessing,
        ):
            assert {record.name for record in caplog.records} >= {"ayaedge.llama"}
            caplog.clear()
            guessing.ask("What is it?", temperature=1, max_tokens=2)
        (record,) = [one for one in caplog.records if one.name != "ayaedge.llama"]
        assert (record.levelno, record.name) == (logging.WARNING, "ayaedge.engine.generation")
        assert "draft_tokens" in record.getMessage()

    def test_what_cannot_be_handed_over_is_refused_by_name(self) -> None:
        with pytest.raises(InvalidOptionError, match="function cannot be handed to another process"):
            options = VisionOptions()
            object.__setattr__(options, "verbose", lambda: True)  # what is checked cannot hold one
            AyaVision.load(isolated=True, vision=options)
        with pytest.raises(InvalidOptionError, match="isolated must be a bool"):
            AyaVision.load(isolated=1)  # type: ignore[arg-type]

    def test_without_shared_memory_images_go_the_long_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(SharedMemory, "create", lambda: None)
        with AyaVision.load(isolated=True) as model:
            assert "2675" in model.ask(QUESTION, images=[CELLS]).text


def names_in(directory: str) -> set[str]:
    return {path.name for path in Path(directory).iterdir()} if Path(directory).is_dir() else set()


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """No descriptor, thread, process or shared memory that was not there before."""

    def things() -> set[Any]:
        children = {one.pid for one in psutil.Process().children()}
        shared = {
            name for name in names_in("/dev/shm") if not name.startswith("sem.")
        }  # pools of other tests
        return {*threading.enumerate(), *children, *shared}

    before, open_before = things(), len(names_in("/proc/self/fd"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        yield
    assert things() - before == set()
    assert len(names_in("/proc/self/fd")) <= open_before


@needs_signals
@pytest.mark.usefixtures("nothing_left")
class TestDeaths:
    @pytest.mark.parametrize(
        ("name", "moment"),
        [
            ("SIGABRT", "vision"),
            ("SIGSEGV", "prefill"),
            ("SIGKILL", "text"),
            ("SIGBUS", "idle"),
        ],
    )
    def test_a_death_is_an_error_that_says_what_to_do(self, name: str, moment: str) -> None:
        model = AyaVision.load(isolated=True, cache=NO_CACHE)
        pid = pid_of(model)

        def die(*_: Any) -> None:
            os.kill(pid, signal.Signals[name])

        if moment == "idle":
            die()
            wait_for(lambda: is_gone(pid))
            handle = model.submit(QUESTION)
        elif moment == "text":
            handle = model.submit(QUESTION, images=[CELLS], on_text=die)
        else:
            handle = model.submit(
                QUESTION, images=[CELLS], on_progress=lambda stage, *_: stage == moment and die()
            )
        waiting = model.submit("And then?")
        for one in (handle, waiting):
            error = one.exception(SOON)
            assert type(error) is BackendError
            assert f"({name})" in str(error)
            assert "Load the model again" in str(error)
            assert ("memory runs out" if name == "SIGKILL" else "the bundle may be damaged") in str(error)
        with pytest.raises(BackendError):
            model.count_tokens([{"role": "user", "content": "x"}])
        model.close()
        assert is_gone(pid)

    def test_a_death_while_loading_is_an_error_and_the_next_load_works(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call = process.ModelProcess.call

        def die_first(self: process.ModelProcess, name: str, *arguments: Any, **more: Any) -> Any:
            if name == "load":
                os.kill(self.pid, signal.SIGABRT)
            return call(self, name, *arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(process.ModelProcess, "call", die_first)
            with pytest.raises(BackendError, match=r"\(SIGABRT\)"):
                AyaVision.load(isolated=True)
        with AyaVision.load(isolated=True) as model:
            assert "2675" in model.ask(QUESTION, images=[CELLS]).text

    def test_a_bundle_that_is_refused_leaves_nothing(self, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        bundle.mkdir()
        for path in demo_bundle().iterdir():
            (bundle / path.name).write_bytes(path.read_bytes())
        decoder = read_bundle(bundle).decoder_path
        decoder.write_bytes(bytes(decoder.stat().st_size))
        with pytest.raises((BundleError, BackendError)) as here:
            AyaVision.load(bundle)
        with pytest.raises((BundleError, BackendError)) as there:
            AyaVision.load(bundle, isolated=True)
        assert (type(here.value), str(here.value)) == (type(there.value), str(there.value))

    def test_a_process_that_hangs_is_ended_when_the_model_is_closed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(process, "_GRACE", 0.2)
        model = AyaVision.load(isolated=True)
        pid = pid_of(model)
        os.kill(pid, signal.SIGINT)  # as Ctrl-C on a terminal: not its affair
        assert model.ask("x", max_tokens=1).text is not None
        stopped = threading.Event()

        def stop(_: Any) -> None:
            os.kill(pid, signal.SIGSTOP)
            stopped.set()

        handle = model.submit(QUESTION, images=[CELLS], on_text=stop)
        assert stopped.wait(SOON)
        model.close()
        assert isinstance(handle.exception(SOON), ClosedError)
        assert is_gone(pid)

    def test_closing_ends_what_runs_and_a_death_meanwhile_is_no_matter(self) -> None:
        model = AyaVision.load(isolated=True)
        pid = pid_of(model)
        begun = threading.Event()
        handle = model.submit(QUESTION, images=[CELLS], on_text=lambda _: begun.set())
        assert begun.wait(SOON)
        closing = threading.Thread(target=model.close)
        closing.start()
        os.kill(pid, signal.SIGKILL)
        closing.join(SOON)
        assert not closing.is_alive()
        assert isinstance(handle.exception(SOON), (ClosedError, type(None)))
        with pytest.raises(ClosedError):
            model.ask("x")
        with pytest.raises(ClosedError):
            model.count_tokens([{"role": "user", "content": "x"}])


PROGRAM = """
import os, pathlib, signal, sys, time
with open(sys.argv[1], "a") as log:
    log.write("run ")
import ayaedge
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
model = ayaedge.AyaVision.load(isolated=True)
print(model.ask("Describe the picture.", images=[sys.argv[2]]).text)
try:
    once = iter([signal.SIGINT])
    def interrupt(_):
        for number in once:
            os.kill(os.getpid(), number)
    model.submit("Describe the picture.", images=[sys.argv[2]], on_text=interrupt).result()
except KeyboardInterrupt:
    print("interrupted")
print(model.ask("Describe the picture.", images=[sys.argv[2]]).text)
pid, fork = model._engine.process.pid, os.fork()
if fork == 0:  # holds this process's end of everything
    os.close(1), os.close(2)
    time.sleep(600)
print(pid, fork, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@needs_linux
def test_a_program_without_a_guard_is_not_run_again_and_takes_the_process_with_it(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "runs"), str(CELLS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SOON)
    assert done.returncode == -signal.SIGKILL, done.stderr
    first, interrupted, second, pids = done.stdout.splitlines()
    pid, fork = map(int, pids.split())
    assert (interrupted, first) == ("interrupted", second)
    assert (tmp_path / "runs").read_text() == "run "
    wait_for(
        lambda: is_gone(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    )  # of its new parent
    os.kill(fork, signal.SIGKILL)


@needs_linux
def test_the_process_writes_no_core_and_goes_first_where_memory_runs_out(apart: AyaVision) -> None:
    facts = Path(f"/proc/{pid_of(apart)}")
    (core,) = [line for line in (facts / "limits").read_text().splitlines() if line.startswith("Max core")]
    assert core.split()[4:6] == ["0", "0"]
    assert (facts / "oom_score_adj").read_text().strip() == "1000"
    own = {str(path.readlink()) for path in (facts / "fd").iterdir()}
    assert not {name for name in own if name.startswith(("/", "pipe", "socket"))} - allowed(own)


def allowed(own: set[str]) -> set[str]:
    """What the process of a model may hold open: the way to and from it, its stderr, and the bundle."""
    ways = [name for name in own if name.startswith(("pipe", "socket"))]
    files = {name for name in own if "deleted" in name or "/demo/" in name or name.startswith("/dev/")}
    # libffi 3.5 keeps its own file open, for ctypes' callbacks
    trampolines = {name for name in own if "/libffi.so" in name}
    return {*ways[:2], *files, *trampolines}
