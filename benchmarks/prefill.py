"""How fast our kernels compute a prefill, beside the llama.cpp that is installed.

`python benchmarks/prefill.py [--kernel avx512-vnni ...] [--only PART ...] [--layers 2] [--tokens 512 ...]
[--ubatch 512 ...] [--threads N] [--rounds 5]`

First single products at the widths of Aya Vision 8B with 512 columns: operations per second of llama.cpp and of each
kernel, on one thread, in turns, also in percent of what the kernel's instructions could do at best (a loop without
memory, before and behind each product): run it ahead of other programs. Then whole prompts through decoders
of that width with few layers and random weights, which differ in nothing but the kernel, in turns, by the clock. The
best of all rounds counts. Then answers behind the longest prompt, a token in each of them after the other: medians, and
the median of each token's ratio to llama.cpp's. At last processes with one decoder each: loading, and the memory that
such a prompt and an answer take beyond the weights, as a user has them by default. `--only` names one or more of
products, prompts, answers and memory.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ayaedge.bundle import Bundle, read_bundle
from ayaedge.decoder.acceleration import compute_peak, make_backend, usable_kernels
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.kernel_trial import Backend, Product, processor_backend
from ayaedge.decoder.options import DecoderOptions
from ayaedge.hardware.machine import processor
from ayaedge_export.synthetic.bundle import MODELS, write_random_bundle

SHAPES = (("Q4_K", 14336, 4096), ("Q4_K", 4096, 14336), ("Q6_K", 4096, 14336))
COLUMNS = 512
PARTS = ("products", "prompts", "answers", "memory")
VOCABULARY = 8192
TOKENS_OF_ROUND = 12
"""Of an answer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", nargs="+", default=list(usable_kernels()))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512])
    parser.add_argument("--ubatch", type=int, nargs="+", default=[512])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=processor().threads)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    print(f"{processor().name}, {chosen.threads} threads\n")
    if "products" in chosen.only:
        products(chosen.kernel, chosen.rounds)
    if set(chosen.only) == {"products"}:
        return
    with tempfile.TemporaryDirectory() as directory:
        bundle = write_bundle(Path(directory), chosen.layers)
        if "prompts" in chosen.only:
            for tokens in chosen.tokens:
                prompts(bundle, chosen.kernel, chosen.ubatch, tokens, chosen.threads, chosen.rounds)
        if "answers" in chosen.only:
            answers(bundle, chosen.kernel, max(chosen.tokens), chosen.threads, chosen.rounds)
        if "memory" in chosen.only:
            footprints(
                bundle, chosen.kernel, chosen.ubatch, max(chosen.tokens), chosen.threads, chosen.rounds
            )


def products(kernels: list[str], rounds: int) -> None:
    """Print a table of single products."""
    print(f"| one thread, {COLUMNS} columns, GOP/s | llama.cpp | " + " | ".join(kernels) + " |")
    print("|---" * (len(kernels) + 2) + "|")
    for kind, rows, depth in SHAPES:
        work, speeds, peaks = 2 * rows * depth * COLUMNS, {"": 0.0}, dict.fromkeys(kernels, 0.0)
        with ExitStack() as stack:
            product = stack.enter_context(
                Product(kind, rows, depth, np.random.default_rng(0), columns=COLUMNS)
            )
            stock = stack.enter_context(Backend(processor_backend(), 1))
            ours = {name: stack.enter_context(Backend(make_backend(name), 1)) for name in kernels}
            for _ in range(rounds):
                speeds[""] = max(speeds[""], work / stock.seconds(product))
                for name, backend in ours.items():
                    before = peak(name)
                    speeds[name] = max(speeds.get(name, 0.0), work / backend.seconds(product))
                    peaks[name] = max(peaks[name], before, peak(name))
        found = [
            f"{speeds[name] / 1e9:.0f} ({speeds[name] / peaks[name]:.0%} of {peaks[name] / 1e9:.0f})"
            for name in kernels
        ]
        print(f"| {kind} {rows} x {depth} | {speeds[''] / 1e9:.0f} | " + " | ".join(found) + " |")


def peak(name: str) -> float:
    """Operations per second of a kernel's instructions."""
    started = time.perf_counter()
    return compute_peak(name, 2_000_000) / (time.perf_counter() - started)


def write_bundle(directory: Path, layers: int) -> Bundle:
    """The 8B's decoder with few layers, few words and random weights."""
    model = MODELS["8b"].cut(layers)
    small = replace(
        model.vision, hidden_size=64, intermediate_size=128, num_layers=1, num_heads=4, adapter_size=128
    )
    model = replace(model, vision=small, text=replace(model.text, vocab_size=VOCABULARY))
    target = directory / "bundle"
    write_random_bundle(
        target, "prefill", model, vision="fp32", quant="q4_k_m", threads=None, seed=0, on_progress=None
    )
    return read_bundle(target)


def random_ids(count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, VOCABULARY, count).tolist()


def label(name: str) -> str:
    return "llama.cpp" if name == "off" else name


def prompts(
    bundle: Bundle, kernels: list[str], ubatches: list[int], tokens: int, threads: int, rounds: int
) -> None:
    """Print a table of whole prompts."""
    layers = bundle.manifest.decoder.num_layers
    ids = random_ids(tokens)
    with ExitStack() as stack:
        decoders = {
            (name, size): stack.enter_context(
                Decoder(
                    bundle.decoder_path,
                    bundle.manifest,
                    DecoderOptions(
                        acceleration=name, threads=threads, ubatch_size=size, flash_attention=True
                    ),
                )
            )
            for size in ubatches
            for name in ("off", *kernels)
        }
        seconds = {key: [] for key in decoders}
        for _ in range(1 + rounds):
            for key, decoder in decoders.items():
                decoder.clear()
                decoder.reserve(tokens)
                started = time.perf_counter()
                decoder.decode_tokens(ids)
                seconds[key].append(time.perf_counter() - started)
    best = {key: min(times[1:]) for key, times in seconds.items()}
    first = np.array(seconds["off", ubatches[0]][1:])
    print(
        f"\n| {layers} layers of the 8B, {tokens} tokens | micro-batch | tokens/s | against llama.cpp | median |\n"
        "|---|---|---|---|---|"
    )
    for (name, size), taken in best.items():
        ratio = np.median(first / np.array(seconds[name, size][1:]))
        print(
            f"| {label(name)} | {size} | {tokens / taken:.1f} | {best['off', ubatches[0]] / taken:.2f} "
            f"| {ratio:.2f} |"
        )


def answers(bundle: Bundle, kernels: list[str], behind: int, threads: int, rounds: int) -> None:
    """Print a table of an answer's tokens, by default options: with a kernel, flash attention is ours."""
    count = rounds * TOKENS_OF_ROUND
    ids = random_ids(behind + count)
    with ExitStack() as stack:
        decoders = {
            name: stack.enter_context(
                Decoder(
                    bundle.decoder_path,
                    bundle.manifest,
                    DecoderOptions(acceleration=name.split()[0], threads=threads),
                )
            )
            for name in ("off", "off again", *kernels)
        }
        for decoder in decoders.values():
            decoder.reserve(behind + count)
            decoder.decode_tokens(ids[:behind])
        seconds = {name: [] for name in decoders}
        for number, token in enumerate(ids[behind:]):
            for name in list(decoders)[:: 1 if number % 2 else -1]:
                started = time.perf_counter()
                decoders[name].decode_tokens([token])
                seconds[name].append(time.perf_counter() - started)
    print(
        f"\n| {bundle.manifest.decoder.num_layers} layers of the 8B, a token behind {behind} "
        "| ms, median | against llama.cpp |\n|---|---|---|"
    )
    usual = np.array(seconds["off"])
    for name, times in seconds.items():
        ratio = np.median(np.array(times) / usual)
        print(f"| {name.replace('off', 'llama.cpp')} | {1e3 * np.median(times):.2f} | {ratio:.3f} |")


def footprints(
    bundle: Bundle, kernels: list[str], ubatches: list[int], tokens: int, threads: int, rounds: int
) -> None:
    """Print a table of loading and memory, the best of several processes."""
    print("\n| a process | micro-batch | load, ms | anonymous memory, MB |\n|---|---|---|---|")
    for size in ubatches:
        for name in ("off", *kernels):
            found = []
            for _ in range(rounds):
                with get_context("spawn").Pool(1) as pool:
                    found.append(pool.apply(footprint, (bundle.directory, name, size, tokens, threads)))
            load, memory = (min(column) for column in zip(*found, strict=True))
            print(f"| {label(name)} | {size} | {1e3 * load:.0f} | {memory / 1e6:.0f} |")


def footprint(directory: Path, name: str, ubatch: int, tokens: int, threads: int) -> list[float]:
    """Seconds that a decoder takes to load, and bytes of anonymous memory behind a prompt and an answer's tokens."""
    bundle, ids = read_bundle(directory), random_ids(tokens)
    options = DecoderOptions(acceleration=name, threads=threads, ubatch_size=ubatch)
    started = time.perf_counter()
    with Decoder(bundle.decoder_path, bundle.manifest, options) as decoder:
        loaded = time.perf_counter() - started
        decoder.decode_tokens(ids)
        for token in ids[:2]:
            decoder.decode_tokens([token])
        status = Path("/proc/self/status").read_text()
    (anonymous,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    return [loaded, 1024 * anonymous]


if __name__ == "__main__":
    main()
