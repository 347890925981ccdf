"""Rows of `model.batch` in an hour against a loop over `ask`, with equal answers.

`python benchmarks/batch.py [BUNDLE] [--synthetic 8b] [--layers N] [--rows N] [--tokens N] [--rounds N]
[--max-tiles N ...] [--parallel N] [--ahead]`

Images of noise, with one tile and with as many as the bundle allows, unless limits are named; nothing is kept between
questions but what a single question keeps. All ways take turns, and the fastest round of each counts, so that other
work on the machine weighs little. The bar for the 8B's shape with 64 tokens: 1.3 times as many rows with one tile, as
many with 13. `--ahead` tries the batch twice, without and with the next image encoded meanwhile. A process may be told
to use fewer threads by the system (taskset).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ayaedge import NO_CACHE, AyaVision
from ayaedge.hardware.machine import processor, usable_threads

QUESTION = "Describe the image."
Way: TypeAlias = Callable[[AyaVision, Sequence[Path], dict[str, Any]], list[str | None]]


def images_of(directory: Path, count: int) -> list[Path]:
    """Noise of 1600 x 1200 pixels, whose grid is the largest that there is."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        paths.append(directory / f"{number}.png")
        small = Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8))
        small.resize((1600, 1200)).save(paths[-1])
    return paths


def loop(model: AyaVision, images: Sequence[Path], options: dict[str, Any]) -> list[str | None]:
    return [model.ask(QUESTION, images=image, **options).text for image in images]


def batch(model: AyaVision, images: Sequence[Path], options: dict[str, Any], **how: Any) -> list[str | None]:
    with tempfile.TemporaryDirectory() as directory:
        rows = model.batch(images, QUESTION, journal=Path(directory) / "rows.jsonl", **how, **options)
        return [row.answer for row in rows]


def ways(arguments: argparse.Namespace) -> dict[str, Way]:
    """What takes turns, by its name."""
    one = partial(batch, parallel=arguments.parallel)
    if not arguments.ahead:
        return {"a loop over `ask`": loop, "`model.batch`": one}
    return {
        "a loop over `ask`": loop,
        "`ahead=False`": partial(one, ahead=False),
        "`ahead=True`": partial(one, ahead=True),
    }


def measure(
    model: AyaVision, images: Sequence[Path], arguments: argparse.Namespace, most: int | None
) -> None:
    """Print the line of one limit on tiles."""
    options = {"max_tokens": arguments.tokens, "max_tiles": most}
    seconds: dict[str, list[float]] = {name: [] for name in ways(arguments)}
    answers: dict[str, list[str | None]] = {}
    for _ in range(arguments.rounds):
        for name, way in ways(arguments).items():
            started = time.perf_counter()
            answers[name] = way(model, images, options)
            seconds[name].append(time.perf_counter() - started)
    tiles = model.ask(QUESTION, images=images[-1], max_tokens=1, max_tiles=most).usage.tiles[0]
    first, *others = (3600 * len(images) / min(found) for found in seconds.values())
    equal = sum(len(set(row)) == 1 for row in zip(*answers.values(), strict=True))
    cells = [f"{first:,.1f}", *(f"{rate:,.1f} ({rate / first:.3f} x)" for rate in others)]
    print(f"| {tiles} | {' | '.join(cells)} | {equal} of {len(images)} |", flush=True)
    for name, found in seconds.items():
        print(f"  {name}: {', '.join(f'{one:.1f}' for one in found)} s", file=sys.stderr, flush=True)


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
    parser.add_argument(
        "--ahead", action="store_true", help="without and with the next image encoded meanwhile"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bundle = arguments.bundle
        if arguments.synthetic:
            from ayaedge_export.synthetic.bundle import write_synthetic_bundle

            bundle = write_synthetic_bundle(
                Path(directory) / "bundle", arguments.synthetic, layers=arguments.layers
            )
        other, *images = images_of(Path(directory), 1 + arguments.rows)
        names = list(ways(arguments))
        print(f"Rows an hour, {processor().name}, {usable_threads()} threads\n")
        print(f"| tiles | {' | '.join(names)} | equal answers |")
        print("|---" * (len(names) + 2) + "|", flush=True)
        with AyaVision.load(bundle, cache=NO_CACHE) as model:
            # the first one reads the weights, and none that is measured begins with what is still in the decoder
            model.ask(QUESTION, images=other, max_tokens=2)
            for most in arguments.max_tiles or (1, None):
                measure(model, images, arguments, most)


if __name__ == "__main__":
    main()
