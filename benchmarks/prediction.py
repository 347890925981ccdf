"""How near the predicted time to the first token is to what happens.

`python benchmarks/prediction.py [BUNDLE] [--max-tiles 1 4 12] [--threads 2]`

The machine is measured first, as `--tiles auto` does it, with nothing remembered from earlier. Each image is new
noise, so nothing of it is known; the template's preamble is, from the second question on, and the prediction takes
that into account.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from ayaedge import AyaVision, CacheOptions, DecoderOptions, VisionOptions

_SIZE = (1200, 1600, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?", help="without it the demonstration model")
    parser.add_argument("--max-tiles", type=int, nargs="*", default=[1, 4, 12])
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with (
        tempfile.TemporaryDirectory() as directory,
        AyaVision.load(
            arguments.bundle,
            decoder=DecoderOptions(threads=arguments.threads),
            vision=VisionOptions(threads=arguments.threads),
            cache=CacheOptions(directory=Path(directory)),
        ) as model,
    ):
        model.measure()
        print("| tiles | prompt tokens | known | predicted, s | measured, s | predicted / measured |")
        print("|---|---|---|---|---|---|")
        for most in arguments.max_tiles:
            image = rng.integers(0, 256, _SIZE, np.uint8)
            answer = model.ask("What is written here?", images=[image], max_tiles=most, max_tokens=1)
            usage, timings = answer.usage, answer.timings
            assert timings.predicted is not None
            print(
                f"| {usage.tiles[0]} | {usage.prompt_tokens} | {usage.cached_tokens} | {timings.predicted:.2f} | "
                f"{timings.first_token:.2f} | {timings.predicted / timings.first_token:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
