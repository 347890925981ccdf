"""Many callers at once: nothing crashes, hangs, leaks or answers differently."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from ayaedge import AyaVision, CacheOptions, CancelledError

pytestmark = pytest.mark.usefixtures("all_processors")

IMAGES = sorted((Path(__file__).parents[1] / "examples" / "pictures").glob("*.png"))
QUESTIONS = ["What number is at the bottom left?", "右下の形は何ですか？", "Describe the picture.", "Hello"]
CALLERS = 64
REQUESTS = [4, pytest.param(20, marks=pytest.mark.slow)]
"""Of each caller."""
CASES: list[dict[str, Any]] = [
    {"question": question, "images": images, "max_tokens": 8, "max_tiles": 2}
    for question in QUESTIONS
    for images in ([], IMAGES[:1], IMAGES[1:2], IMAGES[2:4])
]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[AyaVision]:
    """Nothing is known of an image between two questions but its embeddings: prompts are longer than the window."""
    with AyaVision.load(cache=CacheOptions(directory=tmp_path)) as model:
        yield model


@pytest.fixture
def expected(model: AyaVision) -> list[tuple[int, ...]]:
    """What a single thread is answered."""
    return [model.ask(**case).ids for case in CASES]


@pytest.mark.parametrize("requests", REQUESTS)
def test_64_threads_are_answered_like_one(
    model: AyaVision, expected: list[tuple[int, ...]], requests: int
) -> None:
    def call(caller: int) -> tuple[int, int]:
        chance, answered, cancelled = random.Random(caller), 0, 0
        for _ in range(requests):
            number = chance.randrange(len(CASES))
            handle = model.submit(**CASES[number])
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.05)
                handle.cancel()
            try:
                assert handle.result(120).ids == expected[number]
                answered += 1
            except CancelledError as error:
                cancelled += 1
                if error.answer is not None:  # a beginning of the same answer
                    assert error.answer.ids == expected[number][: len(error.answer.ids)]
        return answered, cancelled

    with ThreadPoolExecutor(CALLERS) as pool:
        counts = list(pool.map(call, range(CALLERS)))
    answered, cancelled = map(sum, zip(*counts, strict=True))
    assert answered + cancelled == CALLERS * requests
    assert min(answered, cancelled) > requests


@pytest.mark.parametrize("requests", REQUESTS)
def test_64_asyncio_tasks_are_answered_like_one(
    model: AyaVision, expected: list[tuple[int, ...]], requests: int
) -> None:
    async def call(caller: int) -> tuple[int, int]:
        chance, answered, cancelled = random.Random(caller), 0, 0
        for _ in range(requests):
            number = chance.randrange(len(CASES))
            stream = model.astream(**CASES[number])
            stop = chance.randrange(4) if chance.random() < 0.3 else None
            pieces = []
            try:
                async for piece in stream:
                    pieces.append(piece)
                    if stop is not None and len(pieces) > stop:
                        stream.cancel()
                assert stream.answer.ids == expected[number]
                assert "".join(pieces) == stream.answer.text
                answered += 1
            except CancelledError:
                cancelled += 1
        return answered, cancelled

    async def all_callers() -> list[tuple[int, int]]:
        return await asyncio.wait_for(asyncio.gather(*map(call, range(CALLERS))), 240)

    answered, cancelled = map(sum, zip(*asyncio.run(all_callers()), strict=True))
    assert answered + cancelled == CALLERS * requests
    assert min(answered, cancelled) > requests


def test_loading_and_closing_leaves_no_threads_and_files() -> None:
    def count() -> tuple[int, int]:
        gc.collect()
        return threading.active_count(), psutil.Process().num_fds() if os.name == "posix" else 0

    with AyaVision.load() as model:
        model.ask("Hello", max_tokens=1)
    before = count()
    for _ in range(5):
        with AyaVision.load() as model:
            model.ask("Hello", max_tokens=1)
        AyaVision.load().ask("Hello", max_tokens=1)  # nobody closes it
    end = time.monotonic() + 10
    while (
        count() != before and time.monotonic() < end
    ):  # a model that nobody closed ends by itself, a moment later
        time.sleep(0.01)
    assert count() == before


@pytest.mark.slow
def test_2000_requests_leave_memory_and_files_as_they_were(model: AyaVision) -> None:
    """Chats, cancelled answers, grammars, saved files: whatever a program does in a long life."""
    process, chance = psutil.Process(), random.Random(1)
    early: tuple[int, int] | None = None
    chat = model.chat()
    for number in range(2000):
        case = dict(CASES[number % len(CASES)])
        kind = number % 5
        if kind == 1:
            stream = model.stream(**{**case, "max_tokens": 40, "temperature": 50.0, "seed": number})
            next(stream)
            stream.close()
        elif kind == 2:
            if len(chat.turns) > 4:
                chat = model.chat()
            chat.ask(**case, overflow="drop_oldest")
        elif kind == 3:
            model.ask(**case, choices=["yes", "no", "是"], top_logprobs=3)
        else:
            model.ask(**case, temperature=chance.random(), seed=number)
        if number == 50:
            gc.collect()
            early = process.memory_info().rss, process.num_fds()
    gc.collect()
    assert early is not None
    memory, files = process.memory_info().rss, process.num_fds()
    assert memory <= 1.05 * early[0], (
        f"{early[0] / 1e6:.1f} MB after 50 requests, {memory / 1e6:.1f} MB at the end"
    )
    assert files <= early[1]
