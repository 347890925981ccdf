"""Training batches: scenes cut into tiles, with the labels of every tile and the tokens of the questions.

A question batch holds several questions for each picture. They share the picture's tokens (the prefix) and
are otherwise isolated branches: the mask hides them from each other and positions restart behind the
prefix, so that each branch sees exactly what it would see alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scenes
import torch
from model import MAX_TILES, SYSTEM_PREAMBLE, TILE_SIZE, TOKENS_PER_TILE, tile_tags
from torch import Tensor

from ayaedge.images.tiling import normalize, split_tiles
from ayaedge.manifest import Tiling

IGNORE = -100
"""Label that cross-entropy leaves out."""
BLOCKED = -30000.0
"""Added to attention scores of hidden positions; finite in bfloat16."""
TILING = Tiling(tile_size=TILE_SIZE, max_tiles=MAX_TILES)

LABEL_SIZES = {
    "kind": 4,  # shape, number, several cells, part of a cell
    "shape": len(scenes.SHAPES),
    "color": len(scenes.COLORS),
    "digit 1": 10,
    "digit 2": 10,
    "digit 3": 10,
    "digit 4": 10,
    "count": 7,
}
"""What the auxiliary heads predict for a tile, and the number of classes of each."""
_KINDS = {"shape": 0, "number": 1, "cells": 2, "part": 3}

SYSTEM_MESSAGES = ("Be brief.", "Answer briefly.", "Reply in the language of the question.")
SYSTEM_SHARE = 0.2
"""Share of question batches whose prefix has a caller's system turn."""
SECOND_TURN_SHARE = 0.25
"""Share of branches that go on with a second question about the same picture."""


def tile_pixels(scene: scenes.Scene) -> Tensor:
    """The vision tower's input for a scene, (tiles, 3, S, S) float32, by the runtime's own tiling."""
    tiles = split_tiles(np.asarray(scene.picture), TILING)
    if len(tiles) != scene.layout.tile_count:
        raise ValueError(f"{scene.picture.size} gives {len(tiles)} tiles, the layout says {scene.layout}")
    return torch.from_numpy(normalize(tiles, TILING))


def tile_labels(scene: scenes.Scene) -> list[list[int]]:
    """Labels of each tile of a scene, in the order of `LABEL_SIZES`."""
    layout = scene.layout
    if layout.tile_count == 1:
        return [_item_labels(scene.items[0])]
    if layout.name == "single":
        part = [_KINDS["part"]] + [IGNORE] * 7
        return [part] * (layout.tile_count - 1) + [_item_labels(scene.items[0])]
    cells = [_KINDS["cells"]] + [IGNORE] * 6 + [scene.shape_count]
    return [_item_labels(item) for item in scene.items] + [cells]


def _item_labels(item: scenes.Item) -> list[int]:
    if item.number is None:
        return [_KINDS["shape"], item.shape, item.color] + [IGNORE] * 4 + [1]
    return [_KINDS["number"], IGNORE, item.color] + [int(digit) for digit in item.number] + [0]


def add_noise(pixels: Tensor) -> Tensor:
    """Vary contrast, colour balance and grain a little; pixels are in -1 .. 1, (n, 3, S, S)."""
    count = len(pixels)
    contrast = 1 + 0.05 * torch.randn(count, 1, 1, 1)
    balance = 0.04 * torch.randn(count, 3, 1, 1)
    grain = 0.016 * torch.randn(count, 1, *pixels.shape[2:])
    return (pixels * contrast + balance + grain).clamp(-1, 1)


VISION_MIX = ((0, 12), (1, 3), (2, 3), (3, 3), (4, 3), (5, 2), (6, 2), (7, 6), (8, 5))
"""Scenes in a vision batch: (index of the layout in `scenes.LAYOUTS`, how many)."""


def vision_batch(rng: random.Random) -> tuple[Tensor, Tensor]:
    """Tiles (n, 3, S, S) and labels (n, len(LABEL_SIZES)) from scenes of every layout.

    Of the parts of a single big item only one is taken; they have nothing to teach but what they are.
    """
    pixels, labels = [], []
    for index, count in VISION_MIX:
        for _ in range(count):
            scene = scenes.make_scene(scenes.LAYOUTS[index], rng)
            scene_pixels, scene_labels = tile_pixels(scene), tile_labels(scene)
            if scene.layout.name == "single" and len(scene_labels) > 1:
                keep = [rng.randrange(len(scene_labels) - 1), -1]
                scene_pixels, scene_labels = scene_pixels[keep], [scene_labels[i] for i in keep]
            pixels.append(scene_pixels)
            labels += scene_labels
    return add_noise(torch.cat(pixels)), torch.tensor(labels)


class Prompts:
    """Token ids of prompts, as the processor and the chat template would give them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.image_id = int(tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"))
        self.pad_id = int(tokenizer.pad_token_id)
        self.encode = lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def prefix(self, tile_count: int, system: str | None) -> list[int]:
        """Everything before the first question; without an image if `tile_count` is 0."""
        turns = [SYSTEM_PREAMBLE] if system is None else [SYSTEM_PREAMBLE, system]
        text = "<BOS_TOKEN>"
        for turn in turns:
            text += f"<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{turn}<|END_OF_TURN_TOKEN|>"
        text += "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>"
        if tile_count:
            patches = "<|IMG_PATCH|>" * TOKENS_PER_TILE
            tiles = "".join(tag + patches for tag in tile_tags(tile_count))
            text += f"<|START_OF_IMG|>{tiles}<|END_OF_IMG|>"
        return self.encode(text)

    def branch(self, dialogue: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Ids behind the prefix for (question, answer) turns, and labels: the answers, the rest ignored."""
        ids: list[int] = []
        labels: list[int] = []
        for index, (question, answer) in enumerate(dialogue):
            opening = "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>" if index else ""
            asked = self.encode(opening) + self.encode(question)
            asked = asked + self.encode("<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")
            told = self.encode(f"<|START_RESPONSE|>{answer}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>")
            ids += asked + told
            labels += [IGNORE] * len(asked) + told
        return ids, labels


@dataclass(frozen=True)
class QuestionMix:
    """What is asked how often."""

    tasks: dict[scenes.Task, float]
    languages: tuple[str, ...] = scenes.LANGUAGES
    """Drawn with equal chances; a language that stands there twice comes twice as often."""


@dataclass(frozen=True)
class QuestionBatch:
    """Pictures with question branches; B pictures of n tiles, rows of length S."""

    pixels: Tensor
    """(B * n, 3, T, T), or no tiles for a batch without pictures."""
    tile_labels: Tensor
    """(B * n, len(LABEL_SIZES))."""
    ids: Tensor
    """(B, S)."""
    positions: Tensor
    """(B, S): restart behind the prefix in every branch."""
    branches: Tensor
    """(B, S): 0 for the prefix, 1.. for the branches, -1 for padding."""
    labels: Tensor
    """(B, S): the token itself where it is part of an answer, else IGNORE."""
    image_places: Tensor
    """Places of the image tokens in a row; the same for all rows."""

    def masks(self, window: int) -> dict[str, Tensor]:
        """Additive masks (B, 1, S, S) for the two kinds of attention layers."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        query, key = self.branches[:, :, None], self.branches[:, None, :]
        visible = causal & ((key == 0) | (key == query))
        distance = self.positions[:, :, None] - self.positions[:, None, :]
        hidden = {"full_attention": ~visible, "sliding_attention": ~(visible & (distance < window))}
        zeros = torch.zeros(len(self.ids), length, length, dtype=torch.bfloat16)
        return {name: zeros.masked_fill(mask, BLOCKED)[:, None] for name, mask in hidden.items()}


Dialogue = list[tuple[str, str]]


def question_batch(
    prompts: Prompts,
    layout: scenes.Layout,
    *,
    pictures: int,
    questions: int,
    mix: QuestionMix,
    rng: random.Random,
) -> QuestionBatch:
    """`pictures` scenes of one layout with `questions` branches each."""
    batch = [scenes.make_scene(layout, rng) for _ in range(pictures)]
    dialogues = [[_draw_dialogue(scene, mix, rng) for _ in range(questions)] for scene in batch]
    system = rng.choice(SYSTEM_MESSAGES) if rng.random() < SYSTEM_SHARE else None
    pixels = add_noise(torch.cat([tile_pixels(scene) for scene in batch]))
    labels = torch.tensor([row for scene in batch for row in tile_labels(scene)])
    return _assemble(prompts, prompts.prefix(layout.tile_count, system), dialogues, pixels, labels)


def greeting_batch(prompts: Prompts, *, rows: int, rng: random.Random) -> QuestionBatch:
    """Greetings in random languages, without pictures."""
    dialogues: list[list[Dialogue]] = [
        [[scenes.greeting(language)] for language in rng.sample(scenes.LANGUAGES, 6)] for _ in range(rows)
    ]
    pixels = torch.zeros(0, 3, TILE_SIZE, TILE_SIZE)
    labels = torch.zeros(0, len(LABEL_SIZES), dtype=torch.long)
    return _assemble(prompts, prompts.prefix(0, None), dialogues, pixels, labels)


def _draw_dialogue(scene: scenes.Scene, mix: QuestionMix, rng: random.Random) -> Dialogue:
    language = rng.choice(mix.languages)
    turns = 2 if rng.random() < SECOND_TURN_SHARE else 1
    tasks = scenes.possible_tasks(scene)
    chosen = rng.choices(tasks, [mix.tasks[task] for task in tasks], k=turns)
    return [scenes.ask(scene, language, task, rng) for task in chosen]


def _assemble(
    prompts: Prompts, prefix: list[int], dialogues: list[list[Dialogue]], pixels: Tensor, tile_labels: Tensor
) -> QuestionBatch:
    start = len(prefix)
    rows = []
    for row_dialogues in dialogues:
        ids, positions = list(prefix), list(range(start))
        branches, labels = [0] * start, [IGNORE] * start
        for number, dialogue in enumerate(row_dialogues, start=1):
            branch_ids, branch_labels = prompts.branch(dialogue)
            ids += branch_ids
            labels += branch_labels
            positions += range(start, start + len(branch_ids))
            branches += [number] * len(branch_ids)
        rows.append((ids, positions, branches, labels))
    length = max(len(ids) for ids, *_ in rows)
    fills = (prompts.pad_id, 0, -1, IGNORE)
    ids, positions, branches, labels = (
        torch.tensor([[*row[part], *[fill] * (length - len(row[part]))] for row in rows])
        for part, fill in enumerate(fills)
    )
    places = torch.tensor([place for place, token in enumerate(prefix) if token == prompts.image_id])
    return QuestionBatch(pixels, tile_labels, ids, positions, branches, labels, places.long())
