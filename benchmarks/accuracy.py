"""Held-out accuracy of the small checkpoint: transformers, an exact bundle and the default bundle.

`python benchmarks/accuracy.py [--count N]`; needs the extra `trace`. Prints the table of docs/speed-and-memory.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ayaedge import AyaVision
from ayaedge_export.exporter import export_checkpoint

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "examples" / "tiny-aya-vision"
sys.path.insert(0, str(ROOT / "examples" / "train_tiny"))

import scenes  # noqa: E402
from evaluate import COUNT, SEED  # noqa: E402
from reference import TransformersAnswerer  # noqa: E402
from scoring import Answerer, Report, evaluate  # noqa: E402


def bundle_answerer(model: AyaVision) -> Answerer:
    def answer(samples: Sequence[scenes.Sample]) -> list[str]:
        return [model.ask(sample.question, images=[sample.picture]).text for sample in samples]

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    samples = scenes.held_out(parser.parse_args().count, SEED)
    reports = {"transformers, float32": evaluate(samples, TransformersAnswerer(CHECKPOINT))}
    with TemporaryDirectory() as directory:
        exact = export_checkpoint(CHECKPOINT, Path(directory) / "exact", quant="f32", vision="fp32")
        default = export_checkpoint(CHECKPOINT, Path(directory) / "default", vision="int8")
        for name, bundle in (("bundle, f32 + fp32", exact), ("bundle, q4_k_m + int8", default)):
            with AyaVision.load(bundle.directory) as model:
                reports[f"{name} ({bundle.size / 1e6:.1f} MB)"] = evaluate(samples, bundle_answerer(model))
    print_table(reports)


def print_table(reports: dict[str, Report]) -> None:
    """Right answers in percent, overall and by task, and the weakest language."""
    print("| | all | " + " | ".join(scenes.TASKS) + " | weakest language |")
    print("|---" * (len(scenes.TASKS) + 3) + "|")
    for name, report in reports.items():
        tasks = [f"{report.by['task'][task].share:.1%}" for task in scenes.TASKS]
        language, score = min(report.by["language"].items(), key=lambda item: item[1].share)
        overall = f"{report.overall.share:.1%} ({report.overall.right}/{report.overall.total})"
        print(f"| {name} | {overall} | " + " | ".join(tasks) + f" | {language} {score.share:.1%} |")


if __name__ == "__main__":
    main()
