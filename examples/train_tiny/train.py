"""Train the tiny Aya Vision checkpoint from scratch: `python examples/train_tiny/train.py --out DIR`.

Three stages of a fixed number of steps. Vision: tower and connector learn, with linear heads on every image
token, what is in a tile. Joint: the whole network learns to answer questions; the heads stay on. Polish: the
same, with more of what is hardest.
The state is saved regularly beside DIR; the same command takes an interrupted run up again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import scenes
import torch
from batches import (
    SYSTEM_MESSAGES,
    Prompts,
    QuestionBatch,
    QuestionMix,
    greeting_batch,
    question_batch,
    vision_batch,
)
from model import SYSTEM_PREAMBLE, build_model, build_processor, build_tokenizer, parameter_count
from PIL import Image
from progress import Checkpoints, Log
from schedule import Optimizers, Stage
from torch.nn import functional
from training_model import TrainingModel
from transformers import AyaVisionProcessor

SAVE_EVERY = 150
GREETING_EVERY = 40
"""Every so many joint steps one batch is greetings without a picture."""

EARLY_STEPS = 750
EARLY_MIX = QuestionMix({"color": 0.20, "shape": 0.15, "number": 0.24, "count": 0.22, "describe": 0.19})
LATE_MIX = QuestionMix({"color": 0.34, "shape": 0.13, "number": 0.22, "count": 0.11, "describe": 0.20})
"""After `EARLY_STEPS` of the joint stage: colours are learned last and get more."""
POLISH_MIX = QuestionMix(
    {"color": 0.24, "shape": 0.16, "number": 0.26, "count": 0.14, "describe": 0.20},
    languages=(*scenes.LANGUAGES, *["hi"] * 8),
)
"""In the polish stage: Hindi, whose words the tokenizer cuts into the most pieces, gets more."""

VISION_STAGE = Stage(
    "vision",
    knots=((0, 0.01), (99, 1.0), (650, 1.0), (1300, 0.0)),
    muon_rate=4e-3,
    muon_decay=0.05,
    adam_rate=2e-3,
    clip=2.0,
)
"""The first stage: what is in a tile."""
JOINT_STAGE = Stage(
    "joint",
    knots=((0, 0.01), (99, 1.0), (760, 1.0), (1650, 0.2193), (1900, 0.2193), (2400, 0.0)),
    muon_rate=4e-3,
    muon_decay=0.03,
    adam_rate=2e-3,
    clip=1.0,
)
"""The second stage: questions and answers."""
POLISH_STAGE = Stage(
    "polish",
    knots=((0, 0.01), (20, 0.35), (180, 0.35), (450, 0.0)),
    muon_rate=4e-3,
    muon_decay=0.03,
    adam_rate=2e-3,
    clip=1.0,
    floor=0.01,
)
"""The third stage: the same with fresh optimizers and another mix."""


@dataclass(frozen=True)
class Portion:
    """How a layout enters the training on questions."""

    layout: int
    """Index in `scenes.LAYOUTS`."""
    weight: float
    pictures: int
    questions: int


PORTIONS = (
    Portion(0, 0.06, 14, 3),
    Portion(1, 0.05, 8, 3),
    Portion(2, 0.06, 5, 4),
    Portion(3, 0.07, 10, 4),
    Portion(4, 0.07, 10, 4),
    Portion(5, 0.09, 8, 5),
    Portion(6, 0.09, 8, 5),
    Portion(7, 0.22, 8, 5),
    Portion(8, 0.29, 6, 6),
)


def corpus() -> Iterator[str]:
    """Texts for the tokenizer: questions and answers in all languages, as training draws them."""
    rng = random.Random("corpus")
    blank = Image.new("RGB", (1, 1))
    for index in range(16_000):
        language = scenes.LANGUAGES[index % len(scenes.LANGUAGES)]
        layout = rng.choice(scenes.LAYOUTS)
        items = tuple(scenes.draw_item(rng, held_out=False) for _ in layout.positions)
        scene = scenes.Scene(layout, items, blank)
        yield from scenes.ask(scene, language, rng.choice(scenes.possible_tasks(scene)), rng)
        if index % 20 == 0:
            yield from (*scenes.greeting(language), SYSTEM_PREAMBLE, *SYSTEM_MESSAGES)


def check_prompts(processor: AyaVisionProcessor, prompts: Prompts) -> None:
    """Raise RuntimeError unless training's prompts are, id by id, those of the processor."""
    rng = random.Random("prompts")
    for layout in scenes.LAYOUTS:
        for system in (None, "Be brief."):
            scene = scenes.make_scene(layout, rng)
            (first, answer), (second, last) = (scenes.ask(scene, "fr", "color", rng) for _ in range(2))
            messages = [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": first}]},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": second},
                {"role": "assistant", "content": last},
            ]
            if system is not None:
                messages.insert(0, {"role": "system", "content": system})
            text = processor.apply_chat_template(messages)
            inputs = processor(images=[scene.picture], text=[text], add_special_tokens=False)
            branch, _ = prompts.branch([(first, answer), (second, last)])
            if list(inputs["input_ids"][0]) != prompts.prefix(layout.tile_count, system) + branch:
                raise RuntimeError(f"the prompt for {layout} differs from the processor's: {text!r}")


def train_vision(model: TrainingModel, steps: int, checkpoints: Checkpoints, rng: random.Random) -> None:
    """The first `steps` steps of stage one: tower, connector and heads."""
    stage = VISION_STAGE
    optimizers = Optimizers(model, stage, only=("vision_tower", "projector", "heads"))
    log = Log()
    for step in range(checkpoints.first_step(stage, optimizers), steps):
        pixels, labels = vision_batch(rng)
        with torch.autocast("cpu", torch.bfloat16):
            features = model.image_features(pixels)
        loss = model.tile_loss(features, labels)
        loss.backward()
        optimizers.step(step)
        log.add(loss=loss.item(), digits=model.digit_accuracy(features, labels))
        log.end_step(stage.name, step + 1)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            checkpoints.save(stage, step + 1, optimizers)


def joint_mix(step: int) -> QuestionMix:
    """What is asked in step `step` of the joint stage."""
    return EARLY_MIX if step < EARLY_STEPS else LATE_MIX


def train_answers(
    model: TrainingModel,
    stage: Stage,
    mix_at: Callable[[int], QuestionMix],
    steps: int,
    checkpoints: Checkpoints,
    prompts: Prompts,
    rng: random.Random,
) -> None:
    """The first `steps` steps of the joint or polish stage; a step is two batches of different layouts."""
    optimizers = Optimizers(model, stage)
    log = Log()
    weights = [portion.weight for portion in PORTIONS]
    for step in range(checkpoints.first_step(stage, optimizers), steps):
        batches = [
            question_batch(
                prompts,
                scenes.LAYOUTS[portion.layout],
                pictures=portion.pictures,
                questions=portion.questions,
                mix=mix_at(step),
                rng=rng,
            )
            for portion in rng.choices(PORTIONS, weights, k=2)
        ]
        if step % GREETING_EVERY == 0:
            batches.append(greeting_batch(prompts, rows=4, rng=rng))
        for batch in batches:
            log.add(**_joint_backward(model, batch))
        optimizers.step(step)
        log.end_step(stage.name, step + 1)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            checkpoints.save(stage, step + 1, optimizers)


def _joint_backward(model: TrainingModel, batch: QuestionBatch) -> dict[str, float]:
    """Add the gradients of one batch; returns figures for the log."""
    figures = {}
    features = None
    loss = torch.zeros(())
    with torch.autocast("cpu", torch.bfloat16):
        if len(batch.pixels):
            features = model.image_features(batch.pixels)
        scores, targets = model.answer_scores(batch, features)
    if features is not None:
        loss = model.tile_loss(features, batch.tile_labels)
        figures["tiles"] = loss.item()
    answers = functional.cross_entropy(scores, targets)
    ((loss + answers) / 2).backward()
    figures["answers"] = answers.item()
    figures["tokens"] = float((scores.argmax(-1) == targets).float().mean())
    return figures


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory for the checkpoint")
    parser.add_argument("--steps", type=int, help="end each stage after so many steps, to try things out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    tokenizer = build_tokenizer(corpus())
    processor = build_processor(tokenizer)
    prompts = Prompts(tokenizer)
    check_prompts(processor, prompts)
    model = TrainingModel(build_model(tokenizer)).train()
    print(f"{parameter_count(model.network)} parameters", flush=True)
    checkpoints = Checkpoints(args.out.with_name(args.out.name + ".training") / "state.pt", model, rng)
    train_vision(model, args.steps or VISION_STAGE.steps, checkpoints, rng)
    for stage, mix_at in ((JOINT_STAGE, joint_mix), (POLISH_STAGE, lambda _: POLISH_MIX)):
        train_answers(model, stage, mix_at, args.steps or stage.steps, checkpoints, prompts, rng)
    network = model.network.to(torch.bfloat16)
    network.save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
