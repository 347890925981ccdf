"""What the suite of graphics processors lets run in a child, where llama.cpp has its Vulkan backend."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayaedge import AyaVision, CacheOptions, DecoderOptions, VisionOptions
from ayaedge.bundle import read_bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.hardware.devices import decoder_gpus
from ayaedge.manifest import Manifest


def divergence(exact: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest KL divergence of two sets of logits (n, vocabulary)."""
    logs = [rows - np.logaddexp.reduce(rows, axis=-1, keepdims=True) for rows in np.float64((exact, other))]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1).max())


def open_decoder(directory: str, layers: int, **options: Any) -> Decoder:
    bundle = read_bundle(directory)
    return Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(gpu_layers=layers, **options))


def tokens(decoder: Decoder, count: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(count).integers(0, decoder.vocabulary.size, count)]


def compare(
    directory: str, layers: list[int], count: int, options: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Of each number of layers: layers that are there, KL divergence to the processor, and whether greedy tokens agree.

    Logits of `count` tokens in one prompt, and of eight that are chosen greedily behind them.
    """
    with open_decoder(directory, 0) as decoder:
        exact, chosen = _answer(decoder, count, None)
    for number in layers:
        with open_decoder(directory, number, **options or {}) as decoder:
            logits, _ = _answer(decoder, count, chosen)
            greedy = [int(row.argmax()) for row in logits[:-1]]
            clear = [_margin(row) > 0.02 for row in exact[:-1]]  # ties may fall either way
            same = all(a == b for a, b, sure in zip(greedy, chosen, clear, strict=True) if sure)
            yield {"layers": decoder.gpu_layers, "kl": divergence(exact, logits), "same": same}


def _margin(row: NDArray[Any]) -> float:
    second, first = np.sort(row)[-2:]
    return float(first - second)


def _answer(decoder: Decoder, count: int, chosen: list[int] | None) -> tuple[NDArray[Any], list[int]]:
    decoder.decode_tokens(tokens(decoder, count))
    rows, taken = [decoder.last_logits()], []
    for step in range(8):
        token = int(rows[-1].argmax()) if chosen is None else chosen[step]
        taken.append(token)
        decoder.decode_tokens([token])
        rows.append(decoder.last_logits())
    return np.stack(rows), taken


def move_states(directory: str, count: int) -> Iterator[tuple[str, float | None]]:
    """States from the processor to the GPU and back, and a cut: KL divergence to computing anew; None if refused."""
    with open_decoder(directory, 0, flash_attention=True) as cpu, open_decoder(directory, -1) as gpu:
        ids = tokens(cpu, count)
        for name, source, target in (
            ("to the GPU", cpu, gpu),
            ("on the GPU", gpu, gpu),
            ("to the CPU", gpu, cpu),
        ):
            target.clear()
            target.decode_tokens(ids)
            exact = target.last_logits()
            source.clear()
            source.decode_tokens(ids[:-4])
            state = source.state()
            target.clear()
            if not target.append_state(state, count - 4):
                yield name, None
                continue
            target.decode_tokens(ids[-4:])
            yield name, divergence(exact[None], target.last_logits()[None])
        gpu.clear()
        gpu.decode_tokens(ids)
        exact = gpu.last_logits()
        kept = gpu.keep(count // 2)
        if kept:
            gpu.decode_tokens(ids[count // 2 :])
        yield "cut", divergence(exact[None], gpu.last_logits()[None]) if kept else None


def answers(directory: str | None, image: str, device: str, draft: int) -> list[str]:
    """A conversation about an image, and the same question again, which the prefix cache answers."""
    options, cache = DecoderOptions(draft_tokens=draft, device=device), CacheOptions(directory=None)  # type: ignore[arg-type]
    with AyaVision.load(directory, decoder=options, vision=VisionOptions(device="cpu"), cache=cache) as model:
        chat = model.chat()
        first = chat.ask("What number is at the bottom left?", images=[image], max_tokens=8).text
        second = chat.ask("What colour is it?", max_tokens=8).text
        return [
            first,
            second,
            model.ask("What number is at the bottom left?", images=[image], max_tokens=8).text,
        ]


@contextmanager
def sizes_in_the_log() -> Iterator[dict[str, float]]:
    """MiB that llama.cpp says it takes on the device in the meantime, by kind: `model`, `KV`, `compute`."""
    found: dict[str, float] = {}

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            words = record.getMessage().split()
            if "Vulkan0" not in words or "=" not in words or "size" not in words or "~" in words[0]:
                return
            kind = words[words.index("Vulkan0") + 1]
            size = float(words[words.index("=") + 1])
            found[kind] = size if kind == "compute" else found.get(kind, 0.0) + size

    logger, lines = logging.getLogger("ayaedge.llama"), Lines()
    before = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(lines)
    try:
        yield found
    finally:
        logger.removeHandler(lines)
        logger.setLevel(before)


def taken(directory: str, layers: int, context: int, **options: Any) -> dict[str, float]:
    """MiB that llama.cpp says it took on the device, by kind."""
    options["context_size"] = context
    with sizes_in_the_log() as found, open_decoder(directory, layers, **options) as decoder:
        found["layers"] = decoder.gpu_layers
    found["free"] = decoder_gpus()[0].free_bytes / 2**20
    return found


def distances(directory: str, exact: tuple[Path, Manifest], count: int, **options: Any) -> dict[str, float]:
    """KL divergence of the processor and of the device from the same weights in full precision, on the processor.

    Of `count` tokens in one prompt, and eight more; `options` are those of the KV cache, which is exact for `exact`.
    """
    with Decoder(*exact, DecoderOptions(gpu_layers=0, cache_type="f32", flash_attention=False)) as decoder:
        right, chosen = _answer(decoder, count, None)
    found = {}
    for name, layers in (("cpu", 0), ("gpu", -1), ("half", 3)):
        with open_decoder(directory, layers, **options) as decoder:
            found[name] = divergence(right, _answer(decoder, count, chosen)[0])
    return found


def cancel(directory: str) -> dict[str, float]:
    """Seconds from the flag to the end of a prefill on the device, and the KL divergence of what is computed then."""
    import threading

    from ayaedge.cancellation import Cancellation
    from ayaedge.errors import CancelledError

    with open_decoder(directory, -1, batch_size=64, ubatch_size=64) as decoder:
        ids = tokens(decoder, 900)
        flag, set_at = Cancellation(), [0.0]
        decoder.decode_tokens(ids[:65])
        exact = decoder.last_logits()
        decoder.watch(flag)
        decoder.clear()

        def stop() -> None:
            set_at[0] = time.perf_counter()
            flag.set()

        timer = threading.Timer(0.5, stop)
        timer.start()
        cancelled = False
        try:
            for _ in range(100):
                decoder.clear()
                decoder.decode_tokens(ids)
        except CancelledError:
            cancelled = True
        late = time.perf_counter() - set_at[0]
        decoder.watch(Cancellation())
        decoder.clear()
        decoder.decode_tokens(ids[:65])
        return {
            "cancelled": cancelled,
            "late": late,
            "kl": divergence(exact[None], decoder.last_logits()[None]),
        }


def answer_at_once(directory: str, image: str) -> dict[str, list[str]]:
    """Two models on the device, asked in turns and at the same time."""
    options = DecoderOptions(device="vulkan")
    question = "What number is at the bottom left?"

    def load() -> AyaVision:
        return AyaVision.load(
            directory, decoder=options, vision=VisionOptions(device="cpu"), cache=CacheOptions(directory=None)
        )

    def ask(model: AyaVision) -> list[str]:
        return [model.ask(question, images=[image], max_tokens=8).text for _ in range(3)]

    with load() as first, load() as second:
        in_turns = [*ask(first)[:1], *ask(second)[:1]]
        with ThreadPoolExecutor(2) as pool:
            at_once = [text for answers in pool.map(ask, (first, second)) for text in answers]
        stream = first.stream("hi", temperature=50.0, seed=1)  # nonsense up to the end of its context
        next(stream)
        first.close()
        other = ask(second)[:1]
    return {"in turns": in_turns, "at once": at_once, "beside one that was closed": other}


def end_answers(directory: str) -> dict[str, float]:
    """Seconds that it takes to close an answer, a model that answers, and one that is at its prefill."""
    options = DecoderOptions(device="vulkan")
    found = {}
    for name, prompt in (("an answer", "hi"), ("a model", "hi"), ("a model in its prefill", "word " * 800)):
        model = AyaVision.load(directory, decoder=options, cache=CacheOptions(directory=None))
        stream = model.stream(prompt, temperature=50.0, seed=1)
        if name != "a model in its prefill":
            next(stream)
        time.sleep(0.1)
        started = time.perf_counter()
        stream.close() if name == "an answer" else model.close()
        found[name] = time.perf_counter() - started
        if name == "an answer":
            found["right afterwards"] = model.ask("What is 1?", max_tokens=4).text == _fresh(
                directory, options
            )
        model.close()
    return found


def _fresh(directory: str, options: DecoderOptions) -> str:
    with AyaVision.load(directory, decoder=options, cache=CacheOptions(directory=None)) as model:
        return model.ask("What is 1?", max_tokens=4).text
