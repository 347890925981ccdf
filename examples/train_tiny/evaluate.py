"""Held-out accuracy of a checkpoint: `python examples/train_tiny/evaluate.py examples/tiny-aya-vision`.

To measure another runtime on the same questions, give `scoring.evaluate` the samples of `scenes.held_out`
and a function that answers them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import scenes
from reference import TransformersAnswerer
from scoring import evaluate

SEED = 20250
COUNT = 40 * len(scenes.LANGUAGES)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--turns", type=int, default=1, help="turns of a conversation; the last one counts")
    parser.add_argument("--system", help="a system message before the conversation")
    parser.add_argument("--json", type=Path, help="also write the report, with the misses, to this file")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    samples = scenes.held_out(args.count, args.seed, turns=args.turns)
    report = evaluate(samples, TransformersAnswerer(args.checkpoint, system=args.system))
    print(report.as_table())
    for miss in report.misses:
        print(f"{miss.language} {miss.task} {miss.grid} {miss.size}: {miss.question!r}")
        print(f"  expected {miss.expected!r}, got {miss.answer!r}")
    if args.json:
        args.json.write_text(json.dumps(report.as_dict(), ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
