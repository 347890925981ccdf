"""Errors and results on their way between processes: what is pickled or copied comes back as it was."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ayaedge
from ayaedge import (
    Answer,
    AyaVision,
    CacheOptions,
    CancelledError,
    ContextLengthError,
    DecoderOptions,
    EncodedImage,
    MissingExtraError,
    Piece,
    TokenLogprob,
    VisionOptions,
)
from ayaedge.images.tile_budget import ImageCost
from ayaedge.options import answer_options

ROOT = Path(__file__).parents[2]
FOLDERS = ("runtime", "export", "quant")
PROGRAMS = ("ayaedge.__main__",)
"""Modules that run something when they are imported."""
ANSWER_PARTS: dict[str, Any] = {
    "text": "a cat",
    "usage": ayaedge.Usage(20, 13, 5, 2, (1,), (ImageCost(640, 480, 1, 1, 1, 13),)),
    "timings": ayaedge.Timings(0.5, 0.25, 1.0, 2.0, None),
    "stop_reason": "cancelled",
    "ids": (7, 8),
    "logprobs": (TokenLogprob(7, b"a", -0.5, (TokenLogprob(8, b"b", -1.5),)),),
    "response_format": {"type": "json_object"},
    "stop_string": "END",
}
ANSWER = Answer(**ANSWER_PARTS)
MADE: dict[type[BaseException], Callable[[], BaseException]] = {
    ContextLengthError: lambda: ContextLengthError(needed=9, available=4, image_tokens=2),
    CancelledError: lambda: CancelledError(ANSWER),
    MissingExtraError: lambda: MissingExtraError("verify", "trace"),
}
"""How errors are made that are not called with a message alone."""
WAYS: dict[str, Callable[[Any], Any]] = {
    **{
        f"pickle {protocol}": lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}


def own_modules() -> Iterator[str]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT / folder).with_suffix("").parts).removesuffix(".__init__")


def own_errors() -> list[type[BaseException]]:
    """Every exception class that a module of the three packages defines."""
    modules = [importlib.import_module(name) for name in own_modules() if name not in PROGRAMS]
    values = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    own = {
        value
        for value in values
        if issubclass(value, BaseException) and value.__module__.split(".")[0].startswith("ayaedge")
    }
    return sorted(own, key=lambda kind: kind.__qualname__)


def facts(error: BaseException) -> tuple[object, ...]:
    odd = {name: getattr(error, name, None) for name in ("msg", "name", "path", "filename", "errno")}
    return type(error), str(error), error.args, vars(error), odd


@pytest.mark.parametrize("way", WAYS)
def test_every_error_comes_back_as_it_was(way: str) -> None:
    kinds = own_errors()
    assert set(MADE) <= set(kinds)
    assert len(kinds) > len(ayaedge.errors.__doc__.split("Error")) / 2  # type: ignore[union-attr]
    for kind in kinds:
        error = MADE.get(kind, lambda kind=kind: kind("what is wrong: \udc00"))()  # type: ignore[misc]
        error.__notes__ = ["seen in the third image"]  # type: ignore[attr-defined]
        error.image = 3  # type: ignore[attr-defined]
        assert facts(WAYS[way](error)) == facts(error), kind


class ApplicationError(ContextLengthError):
    """An error that an application derives, made in a way of its own."""

    def __init__(self, user: str, *, needed: int):
        self.user = user
        super().__init__(needed=needed, available=4, image_tokens=0)


@pytest.mark.parametrize("way", WAYS)
def test_an_error_that_an_application_derives_comes_back_as_it_was(way: str) -> None:
    error = ApplicationError("ada", needed=9)
    assert facts(WAYS[way](error)) == facts(error)


def fail(kind: type[BaseException]) -> None:
    raise MADE[kind]()


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("kind", MADE)
def test_a_pool_of_processes_hands_an_error_over(
    pool: ProcessPoolExecutor, kind: type[BaseException]
) -> None:
    expected = MADE[kind]()
    error = pool.submit(fail, kind).exception(timeout=60)
    assert type(error) is kind
    assert str(error) == str(expected)
    assert {name: getattr(error, name) for name in vars(expected)} == vars(expected)


RESULTS: dict[str, Any] = {
    "an answer": ANSWER,
    "decoder options": DecoderOptions(context_size=64, gpu_layers=0),
    "vision options": VisionOptions(threads=2),
    "cache options": CacheOptions(disk_bytes=0),
    "options of an answer": answer_options(max_tokens=3, choices=["a", "b"], seed=1),
    "a logprob": ANSWER.logprobs[0],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RESULTS)
def test_every_result_and_option_comes_back_as_it_was(name: str, way: str) -> None:
    assert WAYS[way](RESULTS[name]) == RESULTS[name]


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("pickle 0", "pickle 1")])
def test_a_piece_of_text_keeps_its_tokens(way: str) -> None:
    piece = Piece("a ca", (7, 8), ANSWER.logprobs)
    back = WAYS[way](piece)
    assert (type(back), back, back.ids, back.logprobs) == (Piece, piece, piece.ids, piece.logprobs)


@pytest.mark.parametrize("way", WAYS)
def test_an_encoded_image_keeps_its_pixels_and_embeddings(way: str) -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (2, 4, 4, 3), np.uint8)
    image = EncodedImage(ANSWER.usage.images[0], tiles, b"encoder", rng.random((2, 3, 5), np.float32))
    back = WAYS[way](image)
    assert (back.cost, back.key) == (image.cost, image.key)
    assert np.array_equal(back.embeddings, image.embeddings)


def test_an_answer_of_a_real_model_comes_back_as_it_was(demo_model: AyaVision) -> None:
    answer = demo_model.ask("What is it?", max_tokens=3, top_logprobs=2)
    assert pickle.loads(pickle.dumps(answer)) == answer
    assert pickle.loads(pickle.dumps(replace(answer, response_format=ApplicationError))).text == answer.text


QUOTED = "\x1b]52;c;cm0=\x07\x9b2J\x7f\u202e\u2066\u2028\x85\r\ud800 صورة שלום नमस्ते 図\u3000表"
"""What a name of a file may hold: a sequence that writes to the clipboard, marks of direction, and letters."""


def test_every_message_can_be_printed_whatever_it_quotes() -> None:
    # others are turned into these before anybody sees them
    printed = [kind for kind in own_errors() if issubclass(kind, ayaedge.AyaEdgeError)]
    assert set(MADE) <= set(printed)
    for kind in printed:
        error = MADE.get(kind, lambda kind=kind: kind(f"first\n\t{QUOTED}"))()  # type: ignore[misc]
        message = str(error)
        assert message.encode().decode() == message, kind
        steering = [char for char in message if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
        assert set(steering) <= {"\n", "\t"}, kind
        assert not set(message) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"), kind
        if kind not in MADE:
            assert message.startswith("first\n\t\\x1b]52;c;cm0=\\x07"), kind
            assert message.endswith("\\ud800 صورة שלום नमस्ते 図\u3000表"), kind
