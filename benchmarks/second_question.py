"""What a second question about an image costs, in the same process and after a restart.

`python benchmarks/second_question.py [BUNDLE] [--image IMAGE] [--threads N]`

Each row answers with one token, so that its time is the time to the first token. A new process is timed from its start
to its end; the same process from call to answer. States go to a directory of their own, which is removed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ayaedge import AyaVision, DecoderOptions, VisionOptions

QUESTIONS = ("What is written here?", "How many people are there?", "Where is it?")


def new_process(bundle: Path | None, image: Path, threads: int, question: str, *more: str) -> float:
    """Seconds of a whole `ayaedge ask`."""
    model = ["-m", str(bundle)] if bundle else []
    arguments = [*model, "--image", str(image), "-n", "1", "-t", str(threads), *more, question]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ayaedge", "ask", *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def same_process(bundle: Path | None, image: Path, threads: int) -> float:
    """Seconds of the second question after the first, which is not timed."""
    options = {"decoder": DecoderOptions(threads=threads), "vision": VisionOptions(threads=threads)}
    with AyaVision.load(bundle, **options) as model:  # type: ignore[arg-type]
        model.ask(QUESTIONS[0], images=[image], max_tokens=1)
        started = time.perf_counter()
        model.ask(QUESTIONS[2], images=[image], max_tokens=1)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="without it the demonstration model")
    parser.add_argument("--image", type=Path, help="an image; by default noise of 1600 x 1200 pixels")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        states = Path(directory, "states")
        os.environ["AYAEDGE_CACHE_DIR"] = str(states)
        image = arguments.image or Path(directory, "noise.png")
        if arguments.image is None:
            noise = np.random.default_rng(0).integers(0, 256, (1200, 1600, 3), np.uint8)
            Image.fromarray(noise).save(image)
        given = (arguments.bundle, image, arguments.threads)
        without = new_process(*given, QUESTIONS[0], "--no-cache")
        rows = {
            "first question, new process, nothing kept": without,
            "first question, new process, states written": new_process(*given, QUESTIONS[0]),
            "second question, new process": new_process(*given, QUESTIONS[1]),
            "second question, same process": same_process(*given),
        }
        print("| | seconds | share |\n|---|---|---|")
        for name, seconds in rows.items():
            print(f"| {name} | {seconds:.2f} | {100 * seconds / without:.1f} % |")
        sizes = ", ".join(
            f"{path.stat().st_size / 1e6:.1f} MB"
            for path in sorted(states.glob("ayaedge/*.state"), key=os.path.getsize)
        )
        print(f"\nstates: {sizes or 'none'}")


if __name__ == "__main__":
    main()
