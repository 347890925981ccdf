"""How fast our kernels compute a prefill, beside the llama.cpp that is installed.

`python benchmarks/prefill.py [--kernel avx512-vnni ...] [--layers 2] [--tokens 512] [--threads N] [--rounds 5]`

First single products at the widths of Aya Vision 8B with 512 columns: operations per second of llama.cpp and of each
kernel, on one thread, in turns, also in percent of what the kernel's instructions could do at best (a loop without
memory). Seconds are those of the processor, so that other programs disturb less. Then whole prompts through decoders
of that width with few layers and random weights, which differ in nothing but the kernel, in turns, by the clock. The
best of all rounds counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ayaedge.bundle import read_bundle
from ayaedge.decoder.acceleration import compute_peak, make_backend, usable_kernels
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.kernel_trial import Backend, Product, processor_backend
from ayaedge.decoder.options import DecoderOptions
from ayaedge.hardware.machine import processor
from ayaedge_export.synthetic.bundle import MODELS, write_random_bundle

SHAPES = (("Q4_K", 14336, 4096), ("Q4_K", 4096, 14336), ("Q6_K", 4096, 14336))
COLUMNS = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", nargs="+", default=list(usable_kernels()))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=processor().threads)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    print(f"{processor().name}, {chosen.threads} threads\n")
    products(chosen.kernel, chosen.rounds)
    prompts(chosen.kernel, chosen.layers, chosen.tokens, chosen.threads, chosen.rounds)


def products(kernels: list[str], rounds: int) -> None:
    """Print a table of single products."""
    peaks = {name: peak(name) for name in kernels}
    print(f"| one thread, {COLUMNS} columns, GOP/s | llama.cpp | " + " | ".join(kernels) + " |")
    print("|---" * (len(kernels) + 2) + "|")
    print("| peak | | " + " | ".join(f"{peaks[name] / 1e9:.0f}" for name in kernels) + " |")
    for kind, rows, depth in SHAPES:
        with ExitStack() as stack:
            product = stack.enter_context(
                Product(kind, rows, depth, np.random.default_rng(0), columns=COLUMNS)
            )
            backends = {"": stack.enter_context(Backend(processor_backend(), 1))}
            for name in kernels:
                backends[name] = stack.enter_context(Backend(make_backend(name), 1))
            seconds = {name: [] for name in backends}
            for _ in range(rounds):
                for name, backend in backends.items():
                    started = time.process_time()
                    backend.compute(product)
                    seconds[name].append(time.process_time() - started)
        speeds = {name: 2 * rows * depth * COLUMNS / min(times) for name, times in seconds.items()}
        found = [f"{speeds[name] / 1e9:.0f} ({speeds[name] / peaks[name]:.0%})" for name in kernels]
        print(f"| {kind} {rows} x {depth} | {speeds[''] / 1e9:.0f} | " + " | ".join(found) + " |")


def peak(name: str) -> float:
    """Operations per second of a kernel's instructions, the best of several tries."""
    best = 0.0
    for _ in range(9):
        started = time.process_time()
        count = compute_peak(name, 2_000_000)
        best = max(best, count / (time.process_time() - started))
    return best


def prompts(kernels: list[str], layers: int, tokens: int, threads: int, rounds: int) -> None:
    """Print a table of whole prompts."""
    model = MODELS["8b"].cut(layers)
    small = replace(
        model.vision, hidden_size=64, intermediate_size=128, num_layers=1, num_heads=4, adapter_size=128
    )
    model = replace(model, vision=small, text=replace(model.text, vocab_size=8192))
    ids = np.random.default_rng(0).integers(0, 8192, tokens).tolist()
    with ExitStack() as stack:
        target = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "bundle"
        write_random_bundle(
            target, "prefill", model, vision="fp32", quant="q4_k_m", threads=None, seed=0, on_progress=None
        )
        bundle = read_bundle(target)
        decoders = {
            name: stack.enter_context(
                Decoder(
                    bundle.decoder_path,
                    bundle.manifest,
                    DecoderOptions(acceleration=name, threads=threads, ubatch_size=512, flash_attention=True),
                )
            )
            for name in ("off", *kernels)
        }
        seconds = {name: [] for name in decoders}
        for _ in range(1 + rounds):
            for name, decoder in decoders.items():
                decoder.clear()
                decoder.reserve(tokens)
                started = time.perf_counter()
                decoder.decode_tokens(ids)
                seconds[name].append(time.perf_counter() - started)
    best = {name: min(times[1:]) for name, times in seconds.items()}
    print(f"\n| {layers} layers of the 8B, {tokens} tokens | tokens/s | against llama.cpp |\n|---|---|---|")
    for name, taken in best.items():
        print(
            f"| {'llama.cpp' if name == 'off' else name} | {tokens / taken:.1f} | {best['off'] / taken:.2f} |"
        )


if __name__ == "__main__":
    main()
