"""What our kernels' products cost on really trained weights, beside llama.cpp's own.

`python benchmarks/kernel_whisper.py [--directory build/whisper] [--kernel avx512-vnni ...] [--tokens 60]`

whisper-base's decoder with the types of Q4_K_M, as `four_bits.py` has it, over texts in all languages. Its linears are
computed by llama.cpp and by each kernel; KL divergences are those to the same rounded weights in double precision, so
that only the products differ. Needs what `whisper_model.py` needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import whisper_model
from four_bits import PROMPT, Corpora, Decoder, Passages, fixed_rule
from numpy.typing import NDArray

from ayaedge.decoder import acceleration
from ayaedge.decoder.kernel_trial import Backend, Product, processor_backend
from ayaedge.hardware.machine import processor, usable_threads
from ayaedge_quant.number_formats import decode, encode

Compute = Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
"""A linear's name and its input (columns, depth) to its output (columns, rows)."""


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, default=whisper_model.DIRECTORY)
    parser.add_argument("--kernel", nargs="+", default=list(acceleration.usable_kernels()))
    parser.add_argument("--tokens", type=int, default=60)
    chosen = parser.parse_args()
    directory = whisper_model.fetch(chosen.directory)
    model = Decoder(directory)
    types = fixed_rule(model)
    blocks = {name: encode(weights.numpy(), types[name]) for name, weights in model.weights.items()}
    rounded = {name: torch.from_numpy(decode(data, types[name])).double().T for name, data in blocks.items()}
    every = Corpora(model, directory).evaluation("prose")
    texts = Passages(every.ids[:1, :, : PROMPT + chosen.tokens], every.states[:1])
    exact = model.predict(model.run(texts, lambda name, x: (x.double() @ rounded[name]).float()))
    print(f"{processor().name}, {texts.ids.shape[1]} texts of {chosen.tokens} tokens\n")
    print("| | KL mean | KL most | same first token | against llama.cpp's, mean |\n|---|---|---|---|---|")

    def stock(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        with (
            Product.of(types[name].name, blocks[name], x) as product,
            Backend(processor_backend(), usable_threads()) as backend,
        ):
            return backend.compute(product)

    usual = 0.0
    for kernel in ("llama.cpp", *chosen.kernel):
        compute: Compute = (
            stock
            if kernel == "llama.cpp"
            else lambda name, x, kernel=kernel: acceleration.product(
                blocks[name], types[name], x, kernel, threads=usable_threads()
            )
        )
        found = model.kl_divergence(exact, model.run(texts, by_rows(compute)))
        usual = usual or float(found.kl.mean())
        print(
            f"| {kernel} | {found.kl.mean():.2e} | {found.kl.max():.2e} | {found.same_top.mean():.2%} "
            f"| {found.kl.mean() / usual:.3f} |"
        )


def by_rows(compute: Compute) -> Callable[[str, torch.Tensor], torch.Tensor]:
    """For inputs of any shape (..., depth)."""

    def product(name: str, x: torch.Tensor) -> torch.Tensor:
        found = compute(name, np.ascontiguousarray(x.flatten(0, -2).numpy()))
        return torch.from_numpy(found).unflatten(0, x.shape[:-1])

    return product


if __name__ == "__main__":
    main()
