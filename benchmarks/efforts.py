"""The small checkpoint's decoder at 4 bits through stock llama.cpp, by effort: KL divergence, answers and speed.

`python benchmarks/efforts.py [--count 460] [--work build/efforts]`

Exports the decoder exactly, with each effort, and with `best` at other sizes, and prints a table. KL divergence is
that of the next token from the exact decoder's, on text, on text behind drawn pictures, and on held-out scenes
(question and right answer behind the picture); none of them is calibrated on. Every decoder gets the exact vision
tower's embeddings. Answers are right or wrong on held-out questions, whole bundles with the fp32 tower.

With `--speed BUNDLE BUNDLE` instead: prefill of 512 tokens and decode of 64, both decoders in turns, and ratios.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ayaedge import AyaVision
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.options import DecoderOptions
from ayaedge.images.load import load_image
from ayaedge.images.tiling import split_tiles
from ayaedge.text.prompt import Message, Prompt, PromptBuilder
from ayaedge.vision.encoder import VisionEncoder
from ayaedge_export.effort import Budget
from ayaedge_export.evaluation.evaluate import evaluate_bundle
from ayaedge_export.exporter import export_checkpoint
from ayaedge_quant.kernels import kl_divergence

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "examples" / "tiny-aya-vision"
sys.path.insert(0, str(ROOT / "examples" / "train_tiny"))

import scenes  # noqa: E402
from accuracy import bundle_answerer  # noqa: E402
from evaluate import SEED  # noqa: E402
from scoring import evaluate  # noqa: E402

BASELINE = "calibrated: importance matrix"
SCENES = 230
"""Held-out scenes whose predictions are compared: ten in each language."""
CONTEXT = 1024
ROUNDS = 7


def export_all(work: Path) -> dict[str, Bundle]:
    """Every variant's bundle, by what it is called in the table; the exact one first."""
    name = "tiny-aya-vision"
    exact = export_checkpoint(CHECKPOINT, work / f"{name}-exact", quant="f32", vision="fp32", force=True)

    def variant(label: str, effort: str, budget: Budget | None = None) -> Bundle:
        return export_checkpoint(
            CHECKPOINT, work / label, effort=effort, budget=budget or Budget(), vision="fp32", force=True  # type: ignore[arg-type]
        )  # fmt: skip

    calibrated = variant("calibrated", "calibrated")
    rule_bytes = calibrated.decoder_path.stat().st_size
    return {
        "exact": exact,
        "fast: plain": variant("fast", "fast"),
        BASELINE: calibrated,
        "error feedback, the format's types": variant("rule", "best", Budget(choose_types=False)),
        "best": variant("best", "best"),
        "best, given these bytes": variant("given", "best", Budget(rule_bytes)),
        "best at 0.94 x the bytes": variant("smaller", "best", Budget(int(0.94 * rule_bytes))),
    }


def scene_prompts(exact: Bundle, count: int) -> list[tuple[Prompt, NDArray[np.float32]]]:
    """Held-out questions with their right answers, and the picture's embeddings."""
    encoder = VisionEncoder(exact.vision_path, exact.manifest)
    found = []
    with Decoder(exact.decoder_path, exact.manifest, DecoderOptions(context_size=CONTEXT)) as decoder:
        builder = PromptBuilder(exact.manifest, decoder.vocabulary.tokenize)
        for sample in scenes.held_out(count, SEED + 1):
            tiles = split_tiles(load_image(sample.picture), exact.manifest.tiling)
            prompt = builder.build([Message("user", sample.question, 1)], [len(tiles)])
            answer = tuple(decoder.vocabulary.tokenize(sample.answer))
            features = encoder.encode(tiles).reshape(-1, exact.manifest.decoder.hidden_size)
            found.append((Prompt((*prompt.ids, *answer), prompt.images), features))
    encoder.close()
    return found


def scene_logits(
    bundle: Bundle, prompts: Sequence[tuple[Prompt, NDArray[np.float32]]]
) -> NDArray[np.float32]:
    """Logits (positions, vocabulary) of all positions behind the pictures."""
    options = DecoderOptions(context_size=CONTEXT, batch_size=CONTEXT, all_logits=True)
    parts = []
    with Decoder(bundle.decoder_path, bundle.manifest, options) as decoder:
        for prompt, features in prompts:
            decoder.clear()
            rows = decoder.embed(prompt.ids)
            rows[np.asarray(prompt.ids) == bundle.manifest.tokens.image_patch] = features
            decoder.decode_embeddings(rows)
            parts.append(decoder.logits()[prompt.images[-1].stop - 1 :])
    return np.concatenate(parts)


def quality(bundles: dict[str, Bundle], count: int) -> None:
    """Print the table."""
    exact = bundles["exact"]
    prompts, questions = scene_prompts(exact, SCENES), scenes.held_out(count, SEED)
    expected = scene_logits(exact, prompts)
    print("| | bytes | KLD, text | behind pictures | held-out scenes | all positions | against "
          "importance matrix | right answers |\n|---" + "|---:" * 7 + "|")  # fmt: skip
    rows = {}
    for name, bundle in bundles.items():
        against = evaluate_bundle(bundle, exact)
        scene = kl_divergence(expected, scene_logits(bundle, prompts)).kl
        assert against.after_image
        parts = [
            (against.overall.mean_kl, against.overall.positions),
            (against.after_image.mean_kl, against.after_image.positions),
            (float(scene.mean()), len(scene)),
        ]
        pooled = sum(kl * n for kl, n in parts) / sum(n for _, n in parts)
        with AyaVision.load(bundle.directory) as model:
            right = evaluate(questions, bundle_answerer(model)).overall
        rows[name] = [kl for kl, _ in parts] + [pooled]
        ratios = "" if BASELINE not in rows else " / ".join(
            f"{ours / theirs:.2f}" for ours, theirs in zip(rows[name], rows[BASELINE], strict=True)
        )  # fmt: skip
        figures = " | ".join(f"{kl:.6f}" for kl in rows[name])
        size = bundle.decoder_path.stat().st_size
        print(
            f"| {name} | {size:,} | {figures} | {ratios} | {right.share:.1%} ({right.right}/{right.total}) |",
            flush=True,
        )


def speed(first: Bundle, second: Bundle) -> None:
    """Print how fast two decoders are, in turns; ratios of the medians, the second to the first."""
    options = DecoderOptions(context_size=CONTEXT, batch_size=512)
    with (
        Decoder(first.decoder_path, first.manifest, options) as one,
        Decoder(second.decoder_path, second.manifest, options) as other,
    ):
        ids = [int(i) for i in np.random.default_rng(0).integers(300, 2000, 576)]
        times: dict[Decoder, list[tuple[float, float]]] = {one: [], other: []}
        for _ in range(ROUNDS):
            for decoder in (one, other):
                decoder.clear()
                started = time.perf_counter()
                decoder.decode_tokens(ids[:512])
                filled = time.perf_counter()
                for token in ids[512:]:
                    decoder.decode_tokens([token])
                times[decoder].append((filled - started, time.perf_counter() - filled))
    medians = [np.median(np.array(found), axis=0) for found in times.values()]
    print("| | prefill, tokens/s | decode, tokens/s |\n|---|---:|---:|")
    for bundle, (prefill, decode) in zip((first, second), medians, strict=True):
        print(f"| {bundle.name} | {512 / prefill:.1f} | {64 / decode:.2f} |")
    ratios = medians[0] / medians[1]
    print(f"| second / first | {ratios[0]:.3f} x | {ratios[1]:.3f} x |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=460, help="held-out questions that are answered")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "efforts")
    parser.add_argument("--speed", type=Path, nargs=2, metavar="BUNDLE")
    arguments = parser.parse_args()
    if arguments.speed:
        speed(*map(read_bundle, arguments.speed))
    else:
        arguments.work.mkdir(parents=True, exist_ok=True)
        quality(export_all(arguments.work), arguments.count)


if __name__ == "__main__":
    main()
