"""Train the tiny Aya Vision checkpoint from scratch: `python examples/train_tiny/train.py --out DIR`.

Two stages, both by a fixed number of steps. Vision: tower and connector learn, with linear heads on every
image token, what is in a tile. Joint: the whole network learns to answer questions; the heads stay on.
The state is saved regularly beside DIR; the same command takes an interrupted run up again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import scenes
import torch
from batches import (
    IGNORE,
    LABEL_SIZES,
    SYSTEM_MESSAGES,
    Prompts,
    QuestionBatch,
    greeting_batch,
    question_batch,
    vision_batch,
)
from model import SYSTEM_PREAMBLE, build_model, build_processor, build_tokenizer, parameter_count
from PIL import Image
from progress import Checkpoints, Log
from schedule import Optimizers, Stage
from torch import Tensor, nn
from torch.nn import functional
from transformers import AyaVisionForConditionalGeneration, AyaVisionProcessor

SAVE_EVERY = 150
GREETING_EVERY = 40
"""Every so many joint steps one batch is greetings without a picture."""


def vision_stage(steps: int) -> Stage:
    """The first stage: what is in a tile."""
    return Stage("vision", steps, 4e-3, 2e-3, 0.05, warmup=100, flat_until=0.5, clip=2.0)


def joint_stage(steps: int) -> Stage:
    """The second stage: questions and answers."""
    return Stage("joint", steps, 4e-3, 2e-3, 0.03, warmup=100, flat_until=0.45, clip=1.0)


@dataclass(frozen=True)
class Portion:
    """How a layout enters joint training."""

    layout: int
    """Index in `scenes.LAYOUTS`."""
    weight: float
    pictures: int
    questions: int


JOINT_MIX = (
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


class TrainingModel(nn.Module):  # type: ignore[misc]
    """The network together with the auxiliary heads that training alone uses."""

    def __init__(self, network: AyaVisionForConditionalGeneration) -> None:
        super().__init__()
        self.network = network
        hidden = network.config.text_config.hidden_size
        self.heads = nn.Linear(hidden, sum(LABEL_SIZES.values()))
        for name, parameter in network.named_parameters():
            # the features are taken before this norm, so it never gets a gradient
            parameter.requires_grad_("post_layernorm" not in name)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Connector outputs of tiles (n, 3, S, S): (n, tokens, hidden)."""
        features: Tensor = self.network.model.get_image_features(pixels)
        return features.flatten(1, -2)

    def tile_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Sum of the heads' cross-entropies, each tile's labels asked of each of its tokens."""
        # (n, tokens, classes) -> (n * tokens, classes); labels (n, heads) -> (n * tokens, heads)
        scores = self.heads(features.float()).flatten(0, 1)
        targets = labels.repeat_interleave(features.shape[1], dim=0)
        losses = [
            functional.cross_entropy(part, target, ignore_index=IGNORE)
            for part, target in zip(scores.split([*LABEL_SIZES.values()], dim=1), targets.T, strict=True)
            if bool((target != IGNORE).any())
        ]
        return torch.stack(losses).sum()

    def answer_scores(self, batch: QuestionBatch, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits (m, vocabulary) for the m answer tokens of a batch, and the right tokens (m,)."""
        decoder = self.network.model.language_model
        embeddings = decoder.embed_tokens(batch.ids)
        if features is not None:
            # (B * n, tokens, hidden) -> (B, n * tokens, hidden)
            rows = features.reshape(len(batch.ids), -1, features.shape[-1]).to(embeddings.dtype)
            embeddings = embeddings.index_copy(1, batch.image_places, rows)
        hidden = decoder(
            inputs_embeds=embeddings,
            attention_mask=batch.masks(self.network.config.text_config.sliding_window),
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        # what follows the last token of a branch belongs to the next one, whose first label is IGNORE
        targets = batch.labels[:, 1:]
        chosen = targets != IGNORE
        return self.network.lm_head(hidden[:, :-1][chosen]).float(), targets[chosen]


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


def train_vision(model: TrainingModel, stage: Stage, checkpoints: Checkpoints, rng: random.Random) -> None:
    """Stage one: tower, connector and heads."""
    optimizers = Optimizers(model, stage, only=("vision_tower", "projector", "heads"))
    log = Log()
    for step in range(checkpoints.first_step(stage, optimizers), stage.steps):
        pixels, labels = vision_batch(rng)
        with torch.autocast("cpu", torch.bfloat16):
            features = model.image_features(pixels)
        loss = model.tile_loss(features, labels)
        loss.backward()
        optimizers.step(step)
        log.add(stage.name, step + 1, loss=loss.item(), digits=_digit_accuracy(model, features, labels))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            checkpoints.save(stage, step + 1, optimizers)


def _digit_accuracy(model: TrainingModel, features: Tensor, labels: Tensor) -> float:
    """Share of right digits, the heads of a tile's tokens taken together."""
    with torch.no_grad():
        scores = model.heads(features.float()).mean(1)
    digit_scores = scores.split([*LABEL_SIZES.values()], dim=1)[3:7]
    targets = labels[:, 3:7]
    guesses = torch.stack([part.argmax(1) for part in digit_scores], dim=1)
    return float((guesses == targets)[targets != IGNORE].float().mean())


def train_joint(
    model: TrainingModel, stage: Stage, checkpoints: Checkpoints, prompts: Prompts, rng: random.Random
) -> None:
    """Stage two: everything. A step is two batches of different layouts."""
    optimizers = Optimizers(model, stage)
    log = Log()
    weights = [portion.weight for portion in JOINT_MIX]
    for step in range(checkpoints.first_step(stage, optimizers), stage.steps):
        batches = [
            question_batch(
                prompts,
                scenes.LAYOUTS[portion.layout],
                pictures=portion.pictures,
                questions=portion.questions,
                rng=rng,
            )
            for portion in rng.choices(JOINT_MIX, weights, k=2)
        ]
        if step % GREETING_EVERY == 0:
            batches.append(greeting_batch(prompts, rows=4, rng=rng))
        for batch in batches:
            log.add(stage.name, step + 1 if batch is batches[-1] else -1, **_joint_backward(model, batch))
        optimizers.step(step)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
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
    parser.add_argument("--vision-steps", type=int, default=1300)
    parser.add_argument("--joint-steps", type=int, default=1800)
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
    train_vision(model, vision_stage(args.vision_steps), checkpoints, rng)
    train_joint(model, joint_stage(args.joint_steps), checkpoints, prompts, rng)
    network = model.network.to(torch.bfloat16)
    network.save_pretrained(args.out)
    processor.save_pretrained(args.out)


if __name__ == "__main__":
    main()
