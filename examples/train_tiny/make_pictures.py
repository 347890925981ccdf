"""Draw the demo pictures: `python examples/train_tiny/make_pictures.py --out examples/pictures`.

Writes a few PNG files and `pictures.json`, questions about them in several languages with the right
answers. With `--checkpoint DIR` the answers of that checkpoint are compared first; a wrong one is an error.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import scenes
from scenes import COLORS, LAYOUTS, SHAPES, Item, Sample, Scene, Task


@dataclass(frozen=True)
class Demo:
    """One picture: its file name, layout, side of a cell in pixels and content."""

    name: str
    layout: int
    """Index in `scenes.LAYOUTS`."""
    side: int
    items: tuple[str, ...]
    """For each cell "color thing", the thing being a shape or a number."""
    questions: tuple[tuple[str, Task], ...]
    """(language, task) of the questions to ask."""


DEMOS = (
    Demo(
        "six-cells.png",
        8,
        160,
        ("red circle", "blue 4098", "green star", "purple 2675", "yellow heart", "black triangle"),
        (("en", "describe"), ("de", "number"), ("ja", "shape"), ("ar", "color"), ("fr", "count")),
    ),
    Demo("one-number.png", 2, 256, ("blue 7639",), (("en", "number"), ("hi", "color"), ("tr", "describe"))),
    Demo("one-heart.png", 2, 300, ("red heart",), (("en", "shape"), ("es", "color"), ("ko", "describe"))),
    Demo(
        "four-cells.png",
        7,
        56,
        ("orange square", "black 1806", "purple 9158", "green triangle"),
        (("en", "number"), ("pl", "describe"), ("zh", "color"), ("vi", "shape"), ("ru", "count")),
    ),
    Demo(
        "row.png",
        5,
        70,
        ("yellow star", "red 5634", "blue circle"),
        (("en", "count"), ("it", "number"), ("el", "describe"), ("he", "color")),
    ),
)


def parse_item(text: str) -> Item:
    """ "red circle" or "blue 4098" as an item."""
    color, thing = text.split()
    if thing in SHAPES:
        return Item(COLORS.index(color), SHAPES.index(thing))
    return Item(COLORS.index(color), 0, thing)


def samples_of(demo: Demo, rng: random.Random) -> list[Sample]:
    """The picture of a demo with each of its questions."""
    layout = LAYOUTS[demo.layout]
    items = tuple(parse_item(item) for item in demo.items)
    scene = Scene(layout, items, scenes.render(layout, items, demo.side, rng))
    samples = []
    for language, task in demo.questions:
        question, answer = scenes.ask(scene, language, task, rng)
        samples.append(Sample(scene.picture, language, task, layout.name, question, answer))
    return samples


def check(checkpoint: Path, samples: list[Sample]) -> None:
    """Raise ValueError naming every question that the checkpoint answers wrongly."""
    from reference import TransformersAnswerer
    from scoring import evaluate

    misses = evaluate(samples, TransformersAnswerer(checkpoint)).misses
    if misses:
        raise ValueError(f"{checkpoint} answers {len(misses)} questions wrongly: {misses}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the pictures")
    parser.add_argument("--checkpoint", type=Path, help="checkpoint that has to answer correctly")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rng = random.Random(0)
    drawn = {demo.name: samples_of(demo, rng) for demo in DEMOS}
    if args.checkpoint:
        check(args.checkpoint, [sample for samples in drawn.values() for sample in samples])
    args.out.mkdir(parents=True, exist_ok=True)
    questions = []
    for name, samples in drawn.items():
        samples[0].picture.save(args.out / name, optimize=True)
        questions += [
            {
                "picture": name,
                "language": sample.language,
                "task": sample.task,
                "question": sample.question,
                "answer": sample.answer,
            }
            for sample in samples
        ]
    text = json.dumps(questions, ensure_ascii=False, indent=2) + "\n"
    (args.out / "pictures.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
