"""Cancelling, closing and Ctrl-C end the vision tower inside a tile, and the next question is answered rightly."""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ayaedge import NO_CACHE, AyaVision, CancelledError, ClosedError
from ayaedge.bundle import read_bundle
from ayaedge.cancellation import Cancellation, interruptible
from ayaedge.vision.encoder import VisionEncoder
from slow_graph import with_graph

SOONER = 0.6
"""The part of a whole tile's time within which a tile that is ended has ended, on a busy machine too."""
STEPS = 240
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_graph(tmp_path_factory.mktemp("slow") / "b", steps=STEPS)


@pytest.fixture(scope="module")
def model(directory: Path) -> Iterator[AyaVision]:
    with AyaVision.load(directory, cache=NO_CACHE) as model:
        yield model


@pytest.fixture(scope="module")
def at_once(directory: Path) -> float:
    """Seconds within which a tile that is ended has ended, from what a whole one takes on this machine."""
    bundle = read_bundle(directory)
    encoder = VisionEncoder(bundle.vision_path, bundle.manifest)
    started = time.perf_counter()
    encoder.warm_up()
    return SOONER * (time.perf_counter() - started)


@pytest.fixture
def inside(
    model: AyaVision, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[], object]], list[float]]:
    """Calls what it is given once a tile is being encoded, on another thread, and notes when."""

    def prepare(then: Callable[[], object]) -> list[float]:
        begun, called = threading.Event(), list[float]()
        run = model._engine.vision.run

        def watched(pixels: np.ndarray) -> np.ndarray:
            begun.set()
            return run(pixels)

        def wait() -> None:
            if begun.wait(60):
                time.sleep(0.1)
                called.append(time.perf_counter())
                then()

        monkeypatch.setattr(model._engine.vision, "run", watched)
        threading.Thread(target=wait, daemon=True).start()
        return called

    return prepare


def test_cancelling_ends_a_tile_at_once_and_the_next_one_is_right(
    model: AyaVision, inside: Callable[[Callable[[], object]], list[float]], at_once: float
) -> None:
    handles: list[object] = []
    called = inside(lambda: handles[0].cancel())  # type: ignore[attr-defined]
    handle = model.submit("?", images=[IMAGE], max_tokens=1)
    handles.append(handle)
    with pytest.raises(CancelledError):
        handle.result(60)
    assert time.perf_counter() - called[0] < at_once
    encoded = model.encode_image(IMAGE)  # which no cache has half of
    assert encoded.embeddings is not None
    assert np.unique(encoded.embeddings).size == 1
    assert encoded.embeddings.flat[0] == pytest.approx(int(IMAGE.max()) / 127.5 - 1, abs=0.2)


def test_ctrl_c_ends_a_tile_at_once(
    model: AyaVision, inside: Callable[[Callable[[], object]], list[float]], at_once: float
) -> None:
    called = inside(_thread.interrupt_main)
    with pytest.raises(KeyboardInterrupt):
        model.ask("?", images=[IMAGE[::-1]], max_tokens=1)
    assert time.perf_counter() - called[0] < at_once
    assert model.ask("?", max_tokens=1).usage.completion_tokens == 1


def test_closing_ends_a_tile_at_once(
    model: AyaVision, inside: Callable[[Callable[[], object]], list[float]], at_once: float
) -> None:
    ended: list[float] = []

    def close() -> None:
        model.close()
        ended.append(time.perf_counter())

    called = inside(close)
    with pytest.raises(ClosedError):
        model.ask("?", images=[IMAGE[:, ::-1]], max_tokens=1)
    while not ended:
        time.sleep(0.01)
    assert ended[0] - called[0] < at_once


def test_ctrl_c_ends_a_tile_of_a_program_that_encodes_by_itself(directory: Path, at_once: float) -> None:
    bundle = read_bundle(directory)
    encoder = VisionEncoder(bundle.vision_path, bundle.manifest)
    called: list[float] = []

    def interrupt() -> None:
        called.append(time.perf_counter())
        _thread.interrupt_main()

    threading.Timer(0.2, interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        encoder.warm_up()
    assert time.perf_counter() - called[0] < at_once


def test_a_flag_that_is_set_lets_no_tile_begin(directory: Path, at_once: float) -> None:
    bundle = read_bundle(directory)
    encoder = VisionEncoder(bundle.vision_path, bundle.manifest)
    flag = Cancellation()
    flag.set()
    encoder.watch(flag)
    started = time.perf_counter()
    with pytest.raises(CancelledError):
        encoder.warm_up()
    assert time.perf_counter() - started < at_once
    ends: list[int] = []
    with flag.ending(lambda: ends.append(1)):
        assert ends == [1]
    flag.set()
    assert ends == [1]


def test_errors_of_interruptible_work_are_raised_where_it_is_asked_for() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        interruptible(fail, fail)
    assert interruptible(lambda: 3, fail) == 3
