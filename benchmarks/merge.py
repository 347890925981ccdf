"""What a decoder that is merged with a text-only model can do at each weight: answers about pictures, and text.

`python benchmarks/merge.py [--weights 0.3,0.6,0.8,1] [--method linear] [--steps 60] [--rows 2] [--json FILE]`

Trains a base from the demonstration checkpoint (`examples/train_tiny/text_only.py`, a minute), exports the merge at
each weight (q4_k_m, int8), asks all bundles with `ayaedge benchmark kaleidoscope` on the data of `seed_data.py`, and
prints:

    pictures   share of the multiple-choice questions that are answered right
    text       mean loss of the next token, nats, on texts of the base's kind that it was not trained on
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import seed_data

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "train_tiny"))

import text_only  # noqa: E402

from ayaedge.bundle import Bundle  # noqa: E402
from ayaedge.decoder.decoder import Decoder  # noqa: E402
from ayaedge.decoder.options import DecoderOptions  # noqa: E402
from ayaedge.text.prompt import Prompt  # noqa: E402
from ayaedge_export import (  # noqa: E402
    MergeMethod,
    MergeOptions,
    choose_effort,
    plan_export,
    plan_sweep,
    write_bundle,
)
from ayaedge_export.evaluation.verify import prompt_logits  # noqa: E402

CHECKPOINT = ROOT / "examples" / "tiny-aya-vision"
TEXTS = 150
"""Turns that the loss is measured on."""
_WINDOW = 128


@dataclass(frozen=True)
class Score:
    """What one bundle can do."""

    bundle: str
    weight: float
    pictures: float
    text: float


def merged_bundles(
    base: Path, weights: Sequence[float], place: Path, method: MergeMethod = "linear"
) -> list[Bundle]:
    """The bundles of a sweep."""
    plan = plan_export(CHECKPOINT, merge=MergeOptions(base, weights[0], method), vision="int8")
    return [write_bundle(one, choose_effort(one)) for one in plan_sweep(plan, weights, place / "merged")]


def right_answers(bundles: Sequence[Bundle], rows: int, place: Path) -> list[float]:
    """Share of right answers of each bundle, by `ayaedge benchmark`."""
    seed_data.write_all(place / "data", rows)
    data = str(place / "data" / "kaleidoscope")
    models = [argument for bundle in bundles for argument in ("-m", str(bundle.directory))]
    command = [
        *(sys.executable, "-m", "ayaedge", "benchmark", "kaleidoscope", "--data", data),
        *("--options", "texts", "-n", "48", "-o", str(place / "scores.json"), *models),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = json.loads((place / "scores.json").read_text("utf-8"))["models"]
    return [float(model["all"]["right"]) for model in found]


def text_loss(bundle: Bundle) -> float:
    """Mean loss of the next token, nats, on texts without pictures that no base was trained on."""
    options = DecoderOptions(cache_type="f32", all_logits=True, context_size=_WINDOW)
    tokens, ids, losses = bundle.manifest.tokens, list[int](), []
    with Decoder(bundle.decoder_path, bundle.manifest, options) as decoder:
        for text in itertools.islice(text_only.texts("held out"), TEXTS):
            ids += decoder.vocabulary.tokenize(text)
        for start in range(0, len(ids) - _WINDOW, _WINDOW - 1):
            part = (tokens.bos, *ids[start : start + _WINDOW - 1])
            logits = prompt_logits(decoder, Prompt(part, ()), None, tokens.image_patch)[:-1].astype(
                np.float64
            )
            right = logits[np.arange(len(logits)), part[1:]]
            losses.append(
                np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - right
            )
    return float(np.concatenate(losses).mean())


def score(bundles: Sequence[Bundle], rows: int, place: Path) -> list[Score]:
    """All figures of merged bundles."""
    scores = []
    for bundle, right in zip(bundles, right_answers(bundles, rows, place), strict=True):
        merge = bundle.manifest.source.merge
        assert merge is not None
        scores.append(Score(bundle.name, merge.weight, right, text_loss(bundle)))
    return scores


def table(scores: Sequence[Score]) -> str:
    """The scores as text."""
    lines = ["weight  pictures  text, nats"]
    return "\n".join([*lines, *(f"{s.weight:6g}  {s.pictures:8.1%}  {s.text:10.2f}" for s in scores)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="0.3,0.6,0.8,0.9,1")
    parser.add_argument("--method", default="linear", choices=("linear", "slerp"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=2, help="questions of each task and language")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with TemporaryDirectory() as directory:
        place = Path(directory)
        loss = text_only.write_text_only_base(CHECKPOINT, place / "text-only", given.steps)
        print(f"base: loss {loss:.2f} nats", flush=True)
        weights = [float(word) for word in given.weights.split(",")]
        scores = score(merged_bundles(place / "text-only", weights, place, given.method), given.rows, place)
    print(table(scores))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in scores], indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
