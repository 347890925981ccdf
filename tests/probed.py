"""What the tests of probes let run in a child: functions that answer, wait, fail and die."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from ayaedge import BackendError, BundleError, DecoderOptions, InvalidOptionError, OutOfMemoryError
from ayaedge.bundle import read_bundle
from ayaedge.decoder.decoder import Decoder


def add(first: int, second: int) -> int:
    return first + second


def count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


def die(name: str, words: str = "") -> None:
    """By a signal, after saying something; the library's output goes to the same place."""
    sys.stderr.write(words)
    sys.stderr.flush()
    os.kill(os.getpid(), signal.Signals[name])


def die_the_second_time(name: str) -> Iterator[int]:
    yield 1
    die(name)


def read_nothing() -> int:
    """A real access to no memory."""
    return ctypes.string_at(0)[0]


def leave(code: int) -> None:
    os._exit(code)


def fail() -> None:
    raise RuntimeError("there is no such thing")


def refuse(kind: str) -> None:
    raise {"BackendError": BackendError, "BundleError": BundleError}[kind]("it does not go")


def hang() -> None:
    time.sleep(3600)


def talk() -> str:
    """Print as libraries do, from Python and below it."""
    sys.stdout.write("from Python")
    ctypes.CDLL(None).puts(b"from C")
    ctypes.CDLL(None).fflush(None)
    return "the answer"


def surroundings() -> dict[str, Any]:
    return {"pid": os.getpid(), "main": getattr(sys.modules["__main__"], "__file__", None), "path": sys.path}


def die_with_repacking(directory: str, options: dict[str, Any], *more: Any) -> None:
    assert options["repack"]
    die("SIGILL", "tilezero")


def refuse_repacking(directory: str, options: dict[str, Any]) -> None:
    refuse("BundleError")


def measure_until_repacking_dies(
    directory: str, options: dict[str, Any], sample: int
) -> Iterator[list[float]]:
    """Repacked weights are the fastest, until the last round."""
    yield []
    yield [0.001, 0.001] if options["repack"] else [0.002, 0.002]
    if options["repack"]:
        die("SIGSEGV")
    while True:
        yield [0.002, 0.002]


def use_decoder(directory: str, choices: list[dict[str, Any]]) -> Iterator[str]:
    """Everything that a question does to a decoder, with each of these options: `done`, or what is refused."""
    bundle = read_bundle(directory)
    for options in choices:
        try:
            with Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(**options)) as decoder:
                _use(decoder)
        except (InvalidOptionError, OutOfMemoryError) as error:
            yield f"{type(error).__name__}: {error}"
        else:
            yield "done"


def _use(decoder: Decoder) -> None:
    room = decoder.context_size
    decoder.decode_tokens([1] * min(40, room - 1))
    decoder.reserve(room)
    state, position = decoder.state(), decoder.position
    decoder.clear()
    if not decoder.append_state(state, position):
        decoder.decode_tokens([1] * position)
    if decoder.options.draft_tokens and position + decoder.options.draft_tokens < room:
        decoder.decode_tokens([1] * (1 + decoder.options.draft_tokens), all_logits=True)
        decoder.likeliest()
        decoder.cut(position)
    decoder.decode_embeddings(decoder.embed([2]))
    assert np.isfinite(decoder.logits()).all()


def find_kernel_right_and_fast(name: str, threads: int) -> tuple[dict[str, float], float]:
    return {"Q4_K": 1.0, "Q6_K": 1.01}, 1.5


def find_kernel_slow(name: str, threads: int) -> tuple[dict[str, float], float]:
    return {"Q4_K": 1.0, "Q6_K": 1.0}, 1.05


def find_kernel_wrong(name: str, threads: int) -> tuple[dict[str, float], float]:
    return {"Q4_K": 1.0, "Q6_K": 40.0}, 3.0


def find_attention_fast(name: str, threads: int) -> tuple[dict[str, float], float, float]:
    return {"Q4_K": 1.0, "Q6_K": 1.0, "attention": 0.1}, 1.5, 2.5


def find_attention_wrong(name: str, threads: int) -> tuple[dict[str, float], float, float]:
    return {"Q4_K": 1.0, "Q6_K": 1.0, "attention": 700.0}, 3.0, 3.0


def find_kernel_nonsense(name: str, threads: int) -> list[str]:
    return ["nothing"]


def refuse_with_kernel(name: str, threads: int) -> None:
    raise BackendError("no second process")


def die_with_kernel(name: str, threads: int) -> None:
    die("SIGILL")


def find_only_avx2_right(name: str, threads: int) -> tuple[dict[str, float], float]:
    if name == "amx-bf16":
        die("SIGILL")
    return {"Q4_K": 1.0, "Q6_K": 1.0 if name == "avx2" else 40.0}, 1.5


def find_no_kernel_twice(name: str, threads: int) -> None:
    raise AssertionError("it is known already")


def measure_by_place(directory: str, options: dict[str, Any], sample: int) -> Iterator[list[float]]:
    """Seconds of a prompt's token and of an answer's, as if a GPU were quick with prompts and slow with answers."""
    del directory, sample
    there = options["gpu_layers"] or 0
    quick = there or options["offload_prompts"]
    while True:
        yield [0.001 if quick else 0.1, 0.01 + 0.02 * there]


def measure_growth_of_nothing(directory: str, options: dict[str, Any]) -> list[float]:
    del directory, options
    return [0.001, 0.0, 0.01]
