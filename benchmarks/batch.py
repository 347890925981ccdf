"""Rows of `model.batch` in an hour against a loop over `ask`, with equal answers.

`python benchmarks/batch.py [BUNDLE] [--synthetic 8b] [--layers N] [--rows N] [--tokens N] [--rounds N]
[--max-tiles N ...] [--parallel N]`

Images of noise, with one tile and with as many as the bundle allows, unless limits are named; nothing is kept between
questions but what a single question keeps. Both ways take turns, and the fastest round of each counts, so that other
work on the machine weighs little. The bar for the 8B's shape with 64 tokens: 1.3 times as many rows with one tile, as
many with 13. A process may be told to use fewer threads by the system (taskset).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ayaedge import NO_CACHE, AyaVision

QUESTION = "Describe the image."


def images_of(directory: Path, count: int) -> list[Path]:
    """Noise of 1600 x 1200 pixels, whose grid is the largest that there is."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        paths.append(directory / f"{number}.png")
        small = Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8))
        small.resize((1600, 1200)).save(paths[-1])
    return paths


def loop(
    model: AyaVision, images: Sequence[Path], tokens: int, most: int | None, _parallel: int | None
) -> list[str | None]:
    return [model.ask(QUESTION, images=image, max_tokens=tokens, max_tiles=most).text for image in images]


def batch(
    model: AyaVision, images: Sequence[Path], tokens: int, most: int | None, parallel: int | None
) -> list[str | None]:
    with tempfile.TemporaryDirectory() as directory:
        journal = Path(directory) / "rows.jsonl"
        rows = model.batch(
            images, QUESTION, journal=journal, parallel=parallel, max_tokens=tokens, max_tiles=most
        )
        return [row.answer for row in rows]


def measure(
    model: AyaVision, images: Sequence[Path], arguments: argparse.Namespace, most: int | None
) -> None:
    ways: dict[str, Callable[..., list[str | None]]] = {"loop": loop, "batch": batch}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers: dict[str, list[str | None]] = {}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            answers[name] = way(model, images, arguments.tokens, most, arguments.parallel)
            seconds[name].append(time.perf_counter() - started)
    tiles = model.ask(QUESTION, images=images[0], max_tokens=1, max_tiles=most).usage.tiles[0]
    rates = [3600 * len(images) / min(seconds[name]) for name in ways]
    equal = sum(one == other for one, other in zip(*answers.values(), strict=True))
    print(
        f"| {tiles} | {rates[0]:,.1f} | {rates[1]:,.1f} | {rates[1] / rates[0]:.2f} | {equal} of {len(images)} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="without it the demonstration model")
    parser.add_argument("--synthetic", choices=["8b", "32b"], help="drawn weights of this shape instead")
    parser.add_argument("--layers", type=int, help="of the drawn decoder; all unless given")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--max-tiles", type=int, nargs="*", help="limits on tiles of an image, a line for each"
    )
    parser.add_argument(
        "--parallel", type=int, help="answers at once; the default of `model.batch` unless given"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bundle = arguments.bundle
        if arguments.synthetic:
            from ayaedge_export.synthetic.bundle import write_synthetic_bundle

            bundle = write_synthetic_bundle(
                Path(directory) / "bundle", arguments.synthetic, layers=arguments.layers
            )
        images = images_of(Path(directory), arguments.rows)
        print("| tiles | rows an hour, a loop over `ask` | `model.batch` | ratio | equal answers |")
        print("|---" * 5 + "|")
        with AyaVision.load(bundle, cache=NO_CACHE) as model:
            model.ask(QUESTION, images=images[0], max_tokens=2)  # the first one reads the weights
            for most in arguments.max_tiles or (1, None):
                measure(model, images, arguments, most)


if __name__ == "__main__":
    main()
