"""What isolation costs: seconds to the first token and of each further one, in this process and in one of its own.

    python benchmarks/isolation.py [--rounds 100] [--bundle BUNDLE] [--threads N]

Both models are loaded at once, and asked in turn (A B A B), so that whatever else the machine does meets both alike:
twice each time, of which the second counts, as the first finds the processor's caches full of the other one. Figures
are medians over the rounds, and the overhead is the median of what the two of a round differ by.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from ayaedge import AyaVision, DecoderOptions, VisionOptions
from ayaedge.hardware.machine import processor

QUESTION = "Describe the picture."
IMAGE = Path(__file__).parents[1] / "examples" / "pictures" / "six-cells.png"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    options = {
        "decoder": DecoderOptions(threads=given.threads),
        "vision": VisionOptions(threads=given.threads),
    }
    with ExitStack() as stack:
        models = [
            stack.enter_context(AyaVision.load(given.bundle, isolated=isolated, **options))
            for isolated in (False, True)
        ]
        for image in images(3):
            for model in models:
                measure(model, image, given.max_tokens)
        rounds = []
        for number, image in zip(range(given.rounds), images(given.rounds), strict=True):
            order = models if number % 2 else models[::-1]
            found = {model: measure(model, image, given.max_tokens) for model in order}
            rounds.append([found[model] for model in models])
    print(f"{processor().name}, {given.rounds} rounds")
    report("first token", [[one[0] * 1e3 for one in both] for both in rounds])
    report("each further token", [[one[1] * 1e3 for one in both] for both in rounds])


def measure(model: AyaVision, image: np.ndarray, max_tokens: int | None) -> tuple[float, float]:
    """Seconds from the question to its first piece, and from piece to piece after that; of the second question."""
    for _ in model.stream(QUESTION, images=images(1), max_tokens=max_tokens):
        pass
    start = time.perf_counter()
    pieces = model.stream(QUESTION, images=[image], max_tokens=max_tokens)
    next(pieces)
    first = time.perf_counter()
    number = sum(1 for _ in pieces)
    return first - start, (time.perf_counter() - first) / max(number, 1)


def images(number: int) -> list[np.ndarray]:
    """The image with another corner each time, so that nothing of it is known."""
    with Image.open(IMAGE) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    found = []
    for corner in np.random.default_rng(time.time_ns()).integers(0, 256, (number, 3), np.uint8):
        found.append(pixels.copy())
        found[-1][0, 0] = corner
    return found


def report(what: str, rounds: list[list[float]]) -> None:
    here, apart = (median(both[place] for both in rounds) for place in (0, 1))
    more = median(both[1] - both[0] for both in rounds)
    print(f"{what}: {here:.3f} ms here, {apart:.3f} ms apart: {more:+.3f} ms ({more / here:+.1%})")


if __name__ == "__main__":
    main()
