"""The parts of a benchmark that need a process of their own: `python -m ayaedge.bench.parts PART BUNDLE OPTIONS`.

OPTIONS are a JSON object, and a JSON object on stdout is the result. What is made of the figures is decided in
`ayaedge.bench.benchmark`.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ayaedge import llama, ort
from ayaedge.bench.limits import graph_work
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cache.options import CacheOptions, prepared_graphs
from ayaedge.cache.verified import verified
from ayaedge.decoder.acceleration import kernel_of
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.kernel_trial import settle_acceleration
from ayaedge.decoder.options import DecoderOptions
from ayaedge.decoder.sampling import Sampler, SamplingOptions
from ayaedge.errors import BackendError
from ayaedge.hardware.machine import usable_threads
from ayaedge.model import AyaVision
from ayaedge.planning.device_check import check_devices, uses_devices
from ayaedge.planning.placement import resolve
from ayaedge.text.text_stream import TextStream
from ayaedge.vision.encoder import VisionEncoder
from ayaedge.vision.session import VisionOptions

Result = dict[str, Any]


def load(bundle: Bundle, *, threads: int | None) -> Result:
    """Load both halves, as the first process after an export does."""
    started = time.perf_counter()
    with _load(bundle, threads):
        return {"seconds": time.perf_counter() - started}


def count(bundle: Bundle) -> Result:
    """Count the operations of a tile, in a run that ONNX Runtime profiles."""
    onnxruntime = ort.library()
    side = bundle.manifest.tiling.tile_size
    with tempfile.TemporaryDirectory() as directory:
        settings = onnxruntime.SessionOptions()
        settings.enable_profiling = True
        settings.intra_op_num_threads = usable_threads()
        settings.profile_file_prefix = str(Path(directory, "profile"))
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        settings.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            str(bundle.vision_path), settings, providers=["CPUExecutionProvider"]
        )
        session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, side, side), np.float32)})
        work = graph_work(json.loads(Path(session.end_profiling()).read_text("utf-8")))
    return {"int8": work.int8, "float32": work.float32}


def vision(bundle: Bundle, *, threads: int | None, tiles: int) -> Result:
    """Load the vision tower alone, and encode different tiles one by one after a first that does not count."""
    _, options = _options(bundle, threads)
    started = time.perf_counter()
    encoder = VisionEncoder(
        bundle.vision_path, bundle.manifest, options, prepared=prepared_graphs(CacheOptions())
    )
    loaded = time.perf_counter() - started
    side, rng = bundle.manifest.tiling.tile_size, np.random.default_rng(0)
    seconds = []
    for _ in range(tiles + 1):
        tile = rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32)
        seconds.append(_timed(partial(encoder.run, tile)))
    encoder.close()
    return {"load": loaded, "tile": statistics.median(seconds[1:])}


def prefill(bundle: Bundle, *, threads: int | None, prompts: Sequence[Sequence[Any]], rounds: int) -> Result:
    """Time prompts, ("text" or "image", how many tokens), in turns with stock llama.cpp: without kernels of ours."""
    options, _ = _options(bundle, threads)
    with ExitStack() as stack:
        ours = stock = stack.enter_context(Decoder(bundle.decoder_path, bundle.manifest, options))
        if kernel_of(options):
            plain = replace(options, acceleration="off")
            stock = stack.enter_context(Decoder(bundle.decoder_path, bundle.manifest, plain))
        for opened in (ours, stock):
            # llama.cpp's own functions, which are called as they are, ask for no memory
            opened.reserve(max(tokens for _, tokens in prompts))
            opened.decode_tokens(_tokens(opened, 2))  # touches all weights
        found = [_time_prompt(ours, stock, kind, tokens, rounds) for kind, tokens in prompts]
    return {"acceleration": options.acceleration, "prompts": found}


def decoder(
    bundle: Bundle,
    *,
    threads: int | None,
    contexts: Sequence[int],
    answer_tokens: int,
    rounds: int,
) -> Result:
    """Time answers behind `contexts` tokens, in turns with llama.cpp's own functions on the same context."""
    options, _ = _options(bundle, threads)
    started = time.perf_counter()
    with Decoder(bundle.decoder_path, bundle.manifest, options) as opened:
        loaded = time.perf_counter() - started
        opened.decode_tokens(_tokens(opened, 2))  # touches all weights
        hidden = bundle.manifest.tokens.hidden
        answers = [_time_answer(opened, hidden, before, answer_tokens, rounds) for before in contexts]
    return {"load": loaded, "answers": answers}


def warm(bundle: Bundle, *, threads: int | None, image: str, questions: Sequence[str]) -> Result:
    """Load, ask about an image, and ask again: seconds of loading and of the last question's first token."""
    started = time.perf_counter()
    with _load(bundle, threads) as model:
        loaded = time.perf_counter() - started
        for question in questions:
            answer = model.ask(question, images=[image], max_tokens=1)
    return {"load": loaded, "first_token": answer.timings.first_token}


PARTS: dict[str, Callable[..., Result]] = {
    "load": load, "count": count, "vision": vision, "prefill": prefill, "decoder": decoder, "warm": warm,
}  # fmt: skip


def _load(bundle: Bundle, threads: int | None) -> AyaVision:
    return AyaVision.load(
        bundle.directory, decoder=DecoderOptions(threads=threads), vision=VisionOptions(threads=threads)
    )


def _options(bundle: Bundle, threads: int | None) -> tuple[DecoderOptions, VisionOptions]:
    """What a loaded model would use: this machine's tuned settings, where there are any, and devices that are right."""
    cache = CacheOptions()
    placed = resolve(bundle, "auto", DecoderOptions(threads=threads), VisionOptions(threads=threads), cache)
    if uses_devices(bundle, placed):
        placed = check_devices(verified(bundle, cache.root), placed, cache.root)
    return settle_acceleration(placed.decoder, cache.root), placed.vision


def _time_prompt(opened: Decoder, stock: Decoder, kind: str, tokens: int, rounds: int) -> Result:
    """Tokens per second of a prompt through our own path and through llama.cpp's, from an empty context.

    An image goes as embeddings, which are looked up first as those of its tags are; llama.cpp takes as many tokens.
    """
    ids = _tokens(opened, tokens)
    ours = {
        "text": lambda: opened.decode_tokens(ids),
        "image": lambda: opened.decode_embeddings(opened.embed(ids)),
    }[kind]

    def prepare() -> None:
        for one in (opened, stock):
            one.clear()

    seconds = _in_turns([(opened, ours), (stock, lambda: _raw_decode(stock, ids))], prepare, rounds)
    return {"kind": kind, "tokens": tokens, "ours": tokens / seconds[0], "raw": tokens / seconds[1]}


def _time_answer(opened: Decoder, hidden: Sequence[int], before: int, tokens: int, rounds: int) -> Result:
    """Seconds of an answer's tokens behind `before` others: sampled, decoded and turned into text, or decoded alone."""
    ids = _tokens(opened, before + tokens)
    opened.clear()
    opened.decode_tokens(ids[: before - 1])

    def prepare() -> None:
        opened.keep(before - 1)
        opened.decode_tokens([ids[before - 1]])  # gives logits to sample from

    def ours() -> None:
        stream = TextStream(opened.vocabulary.piece, hidden=hidden)
        with Sampler(SamplingOptions()) as sampler:
            for _ in range(tokens):
                token = sampler.sample(opened)
                stream.push(token)
                opened.decode_tokens([token])

    def raw() -> None:
        for token in ids[before:]:
            _raw_decode(opened, [token])

    seconds = _in_turns([(opened, ours), (opened, raw)], prepare, rounds)
    return {"context": before, "tokens": tokens, "ours": tokens / seconds[0], "raw": tokens / seconds[1]}


def _in_turns(
    runs: Sequence[tuple[Decoder, Callable[[], None]]], prepare: Callable[[], None], rounds: int
) -> list[float]:
    """Median seconds of each, on its decoder, run one after the other in every round: a machine's speed drifts."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for (opened, run), times in zip(runs, seconds, strict=True):
            prepare()
            times.append(_timed(partial(_finish, opened, run)))
    return [statistics.median(times) for times in seconds]


def _finish(opened: Decoder, run: Callable[[], None]) -> None:
    run()
    llama.library().llama_synchronize(opened.handle)


def _raw_decode(opened: Decoder, ids: Sequence[int]) -> None:
    """`llama_decode` in the same batches, behind whatever the context holds; the decoder does not notice."""
    library, array = llama.library(), np.asarray(ids, np.int32)
    for start in range(0, len(array), opened.options.batch_size):
        part = array[start : start + opened.options.batch_size]
        pointer = part.ctypes.data_as(ctypes.POINTER(library.llama_token))
        status = library.llama_decode(opened.handle, library.llama_batch_get_one(pointer, len(part)))
        if status != 0:
            raise BackendError(f"llama.cpp could not decode (status {status}): {llama.recent_errors()}")


def _tokens(opened: Decoder, wanted: int) -> list[int]:
    """Any tokens: what they say does not decide about the time."""
    return [int(token) for token in np.random.default_rng(0).integers(0, opened.vocabulary.size, wanted)]


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    """Run the part that the arguments name."""
    part, bundle, options = sys.argv[1:]
    result = PARTS[part](read_bundle(bundle), **json.loads(options))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
