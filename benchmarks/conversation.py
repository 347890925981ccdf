"""What a conversation costs beyond llama.cpp itself: our loop, a schema, each turn, and how fast it stops.

`python benchmarks/conversation.py [BUNDLE] [--threads N] [--tokens N] [--rounds N] [--part NAME]...`

Ratios are of runs that take turns (A B A B). `loop` compares tokens of an answer with bare llama.cpp calls, a decode
and its greedy sampler, on the same context. `schema` compares an answer under a JSON schema with a free one of as many
tokens. `masks` answers under the schema of `examples/extract_invoice.py`, the likeliest answer and `--rounds` random
ones of `--tokens` tokens, and counts the decoder's steps and what the schema takes in each. `turns` asks ten questions
about an image of 13 tiles, and counts the tokens that were computed. `cancel` stops an answer, a prefill and the
reading of an image at once, and times until the call returns.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ayaedge import AyaVision, CancelledError, DecoderOptions, VisionOptions, llama
from ayaedge.grammar.matcher import Matcher

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from extract_invoice import FORMAT as INVOICE

PARTS = ("loop", "schema", "masks", "turns", "cancel")
QUESTION = "What is written here, and where does it stand? Describe everything that can be seen. "
PHOTO = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "lines": {"type": "array", "items": {"type": "string"}, "minItems": 40},
        "count": {"type": "integer"},
    },
    "required": ["title", "lines", "count"],
    "additionalProperties": False,
}


def our_tokens(model: AyaVision, count: int, **options: Any) -> float:
    """Seconds per token of an answer."""
    answer = model.ask(QUESTION, max_tokens=count + 1, **options)
    return answer.timings.decode / max(len(answer.ids) - 1, 1)


def raw_tokens(model: AyaVision, count: int) -> float:
    """Seconds per token of llama.cpp's own functions behind the same prompt."""
    model.ask(QUESTION, max_tokens=1)
    decoder, library = model._engine.decoder, llama.library()
    sampler = library.llama_sampler_init_greedy()
    memory = library.llama_get_memory(decoder.handle)
    started = time.perf_counter()
    token = (library.llama_token * 1)(library.llama_sampler_sample(sampler, decoder.handle, -1))
    for _ in range(count):
        batch = library.llama_batch(n_tokens=1, token=ctypes.cast(token, ctypes.POINTER(library.llama_token)))
        assert library.llama_decode(decoder.handle, batch) == 0
        token[0] = library.llama_sampler_sample(sampler, decoder.handle, -1)
    seconds = (time.perf_counter() - started) / count
    library.llama_memory_seq_rm(memory, 0, decoder.position, -1)
    library.llama_sampler_free(sampler)
    return seconds


def in_turns(rounds: int, *runs: Callable[[], float]) -> list[float]:
    """The median of each, all of them taking turns."""
    seconds: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, found in zip(runs, seconds, strict=True):
            value = run()
            if number:  # the first round warms up
                found.append(value)
    return [statistics.median(found) for found in seconds]


def loop(model: AyaVision, tokens: int, rounds: int) -> None:
    ours, raw = in_turns(rounds, lambda: our_tokens(model, tokens), lambda: raw_tokens(model, tokens))
    print(f"loop     ours {1e3 * ours:8.3f} ms, raw {1e3 * raw:8.3f} ms a token: {ours / raw:.3f} x, "
          f"{1e3 * (ours - raw):+.3f} ms")  # fmt: skip


def schema(model: AyaVision, tokens: int, rounds: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "page", "schema": SCHEMA}}
    with_schema, without = in_turns(
        rounds, lambda: our_tokens(model, tokens, response_format=form), lambda: our_tokens(model, tokens)
    )
    print(f"schema   with {1e3 * with_schema:8.3f} ms, without {1e3 * without:8.3f} ms a token: "
          f"{without / with_schema:.3f} x the speed")  # fmt: skip


@contextmanager
def timed(kind: type, *names: str) -> Iterator[list[float]]:
    """Seconds of each call of these methods."""
    seconds: list[float] = []
    methods = {name: getattr(kind, name) for name in names}

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            found = method(*arguments, **named)
            seconds.append(time.perf_counter() - started)
            return found

        return call

    for name, method in methods.items():
        setattr(kind, name, watched(method))
    yield seconds
    for name, method in methods.items():
        setattr(kind, name, method)


def masks(model: AyaVision, tokens: int, rounds: int) -> None:
    started = time.perf_counter()
    model.ask(QUESTION, max_tokens=1, response_format=INVOICE)
    print(f"masks    the first question {time.perf_counter() - started:.1f} s")
    draws = [{"temperature": 1.0, "seed": seed} for seed in range(rounds)]
    for name, options in {"likeliest": [{}], "random": draws}.items():
        with timed(Matcher, "take", "allowed") as chosen, timed(Matcher, "forced") as steps:
            written = sum(
                len(model.ask(QUESTION, max_tokens=tokens, response_format=INVOICE, **one).ids)
                for one in options
            )
        print(f"masks    {name:<9} {written} tokens in {len(steps)} steps: {written / len(steps):.2f} x, "
              f"{1e3 * (sum(chosen) + sum(steps)) / len(steps):.3f} ms in the schema a step, "
              f"at most {1e3 * max(chosen + steps):.1f} ms")  # fmt: skip


def turns(model: AyaVision, tokens: int, _rounds: int) -> None:
    chat, held = model.chat(), 0
    for number in range(1, 11):
        started = time.perf_counter()
        usage = chat.ask(
            f"{number}: and then?", images=[PHOTO] if number == 1 else (), max_tokens=tokens
        ).usage
        seconds = time.perf_counter() - started
        new = usage.prompt_tokens - usage.cached_tokens
        print(f"turn {number:<3} {usage.prompt_tokens} tokens of prompt, {held} were held, {new} computed, "
              f"{seconds:.2f} s with {usage.completion_tokens} of answer")  # fmt: skip
        held = usage.prompt_tokens + usage.completion_tokens - 1


def cancel(model: AyaVision, _tokens: int, rounds: int) -> None:
    def at(stage: str) -> float:
        begun = threading.Event()

        def on_progress(step: str, _done: int, _of: int) -> None:
            if step == stage:
                begun.set()

        pixels = np.random.default_rng().integers(0, 256, (480, 640, 3), np.uint8)
        images = [pixels] if stage != "decode" else ()
        handle = model.submit(
            QUESTION, images=images, on_progress=on_progress, on_text=lambda _: begun.set(), max_tokens=200
        )
        begun.wait()
        time.sleep(np.random.default_rng().random() * 0.2)
        started = time.perf_counter()
        handle.cancel()
        try:
            handle.result()
        except CancelledError:
            return time.perf_counter() - started
        return float("nan")  # it was over already

    for stage in ("decode", "prefill", "vision"):
        seconds = [at(stage) for _ in range(max(rounds, 5))]
        print(f"cancel   {stage:<8} {np.nanmedian(seconds):.3f} s, at most {np.nanmax(seconds):.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="without it the demonstration model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, action="append")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["AYAEDGE_CACHE_DIR"] = directory
        options = {
            "decoder": DecoderOptions(threads=arguments.threads),
            "vision": VisionOptions(threads=arguments.threads),
        }
        with AyaVision.load(arguments.bundle, **options) as model:
            for part in arguments.part or PARTS:
                globals()[part](model, arguments.tokens, arguments.rounds)


if __name__ == "__main__":
    main()
