"""What it costs to start: importing the package, loading a bundle, the first answer. Medians of whole processes.

`python benchmarks/start_up.py [--runs N]`
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
from pathlib import Path

IMAGE = Path(__file__).parents[1] / "examples" / "pictures" / "six-cells.png"
STEPS = {
    "python, nothing imported": "pass",
    "import numpy, PIL.Image": "import numpy, PIL.Image",
    "import ayaedge": "import ayaedge",
    "from ayaedge import AyaVision": "from ayaedge import AyaVision",
    "load the demonstration model": "import ayaedge; ayaedge.AyaVision.load()",
    "and answer about a 480 x 320 image": (
        f"import ayaedge; ayaedge.AyaVision.load().ask('What number is at the bottom left?', images=[{str(IMAGE)!r}])"
    ),
}
_TIMED = """
import time, resource
start = time.perf_counter()
{step}
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure(step: str) -> tuple[float, float]:
    """Seconds that a step takes in a fresh process, and the process's peak memory in MB."""
    output = subprocess.run(
        [sys.executable, "-c", _TIMED.format(step=step)], check=True, capture_output=True, text=True
    ).stdout
    seconds, megabytes = map(float, output.split())
    return seconds, megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in STEPS}
    for _ in range(runs + 1):  # in turn, so that a slow minute hits all alike
        for name, step in STEPS.items():
            results[name].append(measure(step))
    print(f"{platform.machine()}, Python {platform.python_version()}, median of {runs} after one warm-up")
    print("| step | seconds | peak memory, MB |\n|---|---|---|")
    for name, figures in results.items():
        seconds, megabytes = zip(*figures[1:], strict=True)
        print(f"| {name} | {statistics.median(seconds):.3f} | {statistics.median(megabytes):.0f} |")


if __name__ == "__main__":
    main()
