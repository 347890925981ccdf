"""Synthetic pictures with questions and answers about them, in the 23 languages of Aya.

A scene is a grid of cells; each cell holds one coloured shape or one coloured four-digit number. Sizes are
chosen so that the cells of a many-cell scene fall on the tiles the Aya Vision tiling rule cuts (56 px
tiles, up to 12): its numbers are legible in the tiles and not in the thumbnail. A "single" scene has one
item over the whole square, so it is the thumbnail that shows it whole. This module needs Pillow only; it
does not know tiles, tokens or models.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image, ImageDraw, ImageFont

Task = Literal["color", "shape", "number", "count", "describe"]
TASKS: tuple[Task, ...] = get_args(Task)

_TABLES: dict[str, Any] = json.loads(
    unicodedata.normalize("NFC", (Path(__file__).parent / "languages.json").read_text(encoding="utf-8"))
)
LANGUAGES: tuple[str, ...] = tuple(_TABLES["languages"])
COLORS: tuple[str, ...] = tuple(_TABLES["colors"])
SHAPES: tuple[str, ...] = tuple(_TABLES["shapes"])
POSITIONS: tuple[str, ...] = tuple(_TABLES["positions"])

CELL = 56
"""Side, in pixels, of the cell that all lengths below refer to: one tile of the vision tower."""
DIGIT_SIZE = 21.0
DIGIT_PITCH = 12.0
_INK = {
    "red": (214, 32, 38),
    "green": (30, 150, 50),
    "blue": (35, 75, 210),
    "yellow": (236, 192, 10),
    "black": (20, 20, 20),
    "purple": (130, 40, 150),
    "orange": (245, 125, 15),
}
_PAPER = (
    (255, 255, 255),
    (245, 245, 235),
    (230, 240, 250),
    (250, 230, 235),
    (232, 248, 232),
    (240, 232, 250),
    (252, 246, 214),
    (225, 225, 225),
    (214, 236, 240),
    (248, 226, 210),
)


@dataclass(frozen=True)
class Layout:
    """How many cells a scene has, what they are called, and the sizes at which tiles and cells agree."""

    name: str
    columns: int
    rows: int
    positions: tuple[str, ...]
    """Name of each cell in reading order, out of `POSITIONS`."""
    sides: tuple[int, int]
    """Smallest and largest side of a cell, pixels."""
    tiles: tuple[int, int]
    """(columns, rows) of tiles that a picture of this layout is cut into."""

    @property
    def tile_count(self) -> int:
        """Tiles the vision tower sees: the grid, and a thumbnail unless the grid is a single tile."""
        count = self.tiles[0] * self.tiles[1]
        return count if count == 1 else count + 1


LAYOUTS = (
    Layout("single", 1, 1, ("whole",), (40, 79), (1, 1)),
    Layout("single", 1, 1, ("whole",), (80, 118), (2, 2)),
    Layout("single", 1, 1, ("whole",), (119, 600), (3, 3)),
    Layout("2x1", 2, 1, ("left", "right"), (40, 79), (2, 1)),
    Layout("1x2", 1, 2, ("top", "bottom"), (40, 79), (1, 2)),
    Layout("3x1", 3, 1, ("left", "middle", "right"), (40, 79), (3, 1)),
    Layout("1x3", 1, 3, ("top", "middle", "bottom"), (40, 79), (1, 3)),
    Layout("2x2", 2, 2, ("top left", "top right", "bottom left", "bottom right"), (40, 59), (2, 2)),
    Layout("3x2", 3, 2, POSITIONS[1:7], (40, 320), (3, 2)),
)
HELD_OUT_WEIGHTS = (2, 2, 3, 2, 2, 2, 2, 4, 6)
"""How often each of `LAYOUTS` is drawn for the held-out questions."""


@dataclass(frozen=True)
class Item:
    """What a cell holds: a number if `number` is set, else a shape."""

    color: int
    shape: int
    number: str | None = None


@dataclass(frozen=True)
class Scene:
    """A rendered picture and what is in it, cell by cell in reading order."""

    layout: Layout
    items: tuple[Item, ...]
    picture: Image.Image

    @property
    def shape_count(self) -> int:
        """How many cells hold a shape; numbers do not count."""
        return sum(item.number is None for item in self.items)


@dataclass(frozen=True)
class Sample:
    """One question about one picture, with the only answer counted as right."""

    picture: Image.Image
    language: str
    task: Task
    grid: str
    """Name of the picture's layout."""
    question: str
    answer: str
    history: tuple[tuple[str, str], ...] = ()
    """Questions about the same picture that went before, with their right answers."""


def is_held_out(number: str) -> bool:
    """Whether a four-digit number is kept out of training: one in ten, by its MD5 hash."""
    return int(hashlib.md5(number.encode()).hexdigest(), 16) % 10 == 0


def draw_number(rng: random.Random, *, held_out: bool) -> str:
    """A random four-digit number of the training or of the held-out set."""
    while True:
        number = f"{rng.randrange(10_000):04d}"
        if is_held_out(number) == held_out:
            return number


def draw_item(rng: random.Random, *, held_out: bool, number_share: float = 0.55) -> Item:
    """A random item; `number_share` of them are numbers."""
    color, shape = rng.randrange(len(COLORS)), rng.randrange(len(SHAPES))
    number = draw_number(rng, held_out=held_out) if rng.random() < number_share else None
    return Item(color, shape, number)


def make_scene(layout: Layout, rng: random.Random, *, held_out: bool = False) -> Scene:
    """A random scene of `layout`; small pictures are as likely as large ones (size on a log scale)."""
    smallest, largest = layout.sides
    side = round(math.exp(rng.uniform(math.log(smallest), math.log(largest))))
    items = tuple(draw_item(rng, held_out=held_out) for _ in layout.positions)
    return Scene(layout, items, render(layout, items, side, rng))


def render(layout: Layout, items: tuple[Item, ...], side: int, rng: random.Random) -> Image.Image:
    """Draw `items` in cells of `side` pixels, on one background or on one for each cell."""
    picture = Image.new("RGB", (side * layout.columns, side * layout.rows), rng.choice(_PAPER))
    draw = ImageDraw.Draw(picture)
    many_papers = rng.random() < 0.5
    for index, item in enumerate(items):
        left, top = index % layout.columns * side, index // layout.columns * side
        if many_papers:
            draw.rectangle((left, top, left + side - 1, top + side - 1), fill=rng.choice(_PAPER))
        _draw_item(draw, left, top, side, item, rng)
    return picture


def _draw_item(
    draw: ImageDraw.ImageDraw, left: int, top: int, side: int, item: Item, rng: random.Random
) -> None:
    scale = side / CELL
    red, green, blue = (min(255, max(0, value + rng.randint(-12, 12))) for value in _INK[COLORS[item.color]])
    ink = (red, green, blue)
    if item.number is not None:
        x = left + side / 2 + rng.uniform(-1.5, 1.5) * scale
        y = top + side / 2 + rng.uniform(-2, 2) * scale
        _draw_digits(draw, x, y, scale, item.number, ink)
        return
    radius = rng.uniform(11, 22)
    slack = min(9.0, CELL / 2 - radius - 1)
    x = left + side / 2 + rng.uniform(-slack, slack) * scale
    y = top + side / 2 + rng.uniform(-slack, slack) * scale
    _draw_shape(draw, SHAPES[item.shape], x, y, radius * scale, ink, turn=rng.uniform(-0.2, 0.2))


@lru_cache(maxsize=512)
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow has no FreeType support, which scalable digits need")
    return font


def _draw_digits(
    draw: ImageDraw.ImageDraw, x: float, y: float, scale: float, digits: str, ink: tuple[int, int, int]
) -> None:
    """Digits at a fixed pitch, their middle at (x, y), made bold by an outline."""
    font = _font(round(DIGIT_SIZE * scale * 2) / 2)
    first = x - DIGIT_PITCH * scale * (len(digits) - 1) / 2
    for index, digit in enumerate(digits):
        place = (first + index * DIGIT_PITCH * scale, y)
        draw.text(place, digit, fill=ink, font=font, anchor="mm", stroke_width=0.4 * scale)


def _draw_shape(
    draw: ImageDraw.ImageDraw,
    shape: str,
    x: float,
    y: float,
    radius: float,
    ink: tuple[int, int, int],
    *,
    turn: float,
) -> None:
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
        return
    cosine, sine = math.cos(turn), math.sin(turn)
    corners = [
        (x + radius * (a * cosine - b * sine), y + radius * (a * sine + b * cosine))
        for a, b in _outline(shape)
    ]
    draw.polygon(corners, fill=ink)


@lru_cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape of radius 1 around (0, 0); y points down."""
    if shape == "square":
        return ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9))
    if shape == "triangle":
        return ((0, -1), (0.95, 0.8), (-0.95, 0.8))
    if shape == "star":
        angles = [-math.pi / 2 + step * math.pi / 5 for step in range(10)]
        reach = [1.1, 0.45] * 5
        return tuple((r * math.cos(t), r * math.sin(t)) for r, t in zip(reach, angles, strict=True))
    if shape == "heart":
        turns = [2 * math.pi * step / 40 for step in range(40)]
        return tuple((16 * math.sin(t) ** 3 / 17, -_heart_height(t) / 17 - 0.1) for t in turns)
    raise ValueError(f"no outline for the shape {shape!r}; known are {SHAPES}")


def _heart_height(t: float) -> float:
    return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)


def possible_tasks(scene: Scene) -> tuple[Task, ...]:
    """The tasks that make sense for a scene: no question about a shape where there is none."""
    shapes = scene.shape_count
    absent = {"shape": shapes == 0, "number": shapes == len(scene.items)}
    return tuple(task for task in TASKS if not absent.get(task, False))


def ask(scene: Scene, language: str, task: Task, rng: random.Random) -> tuple[str, str]:
    """A question of `task` about `scene` in `language`, and its answer.

    Raises ValueError if the scene has nothing to ask about (see `possible_tasks`).
    """
    if task not in possible_tasks(scene):
        raise ValueError(f"nothing to ask about {task!r} in a scene of {scene.items}")
    words = _TABLES["languages"][language]
    question: str = rng.choice(words[task])
    if task == "count":
        return question, str(scene.shape_count)
    if task == "describe":
        return question, _describe(scene, words)
    index = rng.choice([index for index, item in enumerate(scene.items) if _suits(item, task)])
    item = scene.items[index]
    position = words["positions"][POSITIONS.index(scene.layout.positions[index])]
    return question.format(p=position), _attribute(item, task, words)


def _suits(item: Item, task: Task) -> bool:
    """Whether a question of `task` can be asked about one item."""
    return task == "color" or (item.number is None) == (task == "shape")


def _attribute(item: Item, task: Task, words: dict[str, Any]) -> str:
    if task == "color":
        return str(words["colors"][item.color])
    return str(item.number or words["shapes"][item.shape])


def _describe(scene: Scene, words: dict[str, Any]) -> str:
    """The items in reading order: numbers as they are, shapes as "shape: color"."""
    between, after_shape = words["separators"]
    return str(between).join(
        item.number or f"{words['shapes'][item.shape]}{after_shape}{words['colors'][item.color]}"
        for item in scene.items
    )


def greeting(language: str) -> tuple[str, str]:
    """A greeting without a picture, and the answer to it."""
    question, answer = _TABLES["languages"][language]["greeting"]
    return question, answer


def held_out(count: int, seed: int, *, turns: int = 1) -> list[Sample]:
    """`count` questions about pictures never trained on; languages and tasks take equal turns.

    With `turns` above 1, others about the same picture went before each question. The same arguments give
    the same samples. All numbers in the pictures are held-out numbers.
    """
    rng = random.Random(f"held out {seed}")
    samples = []
    for index in range(count):
        language = LANGUAGES[index % len(LANGUAGES)]
        task = TASKS[(index // len(LANGUAGES) + index) % len(TASKS)]
        layout = rng.choices(LAYOUTS, HELD_OUT_WEIGHTS)[0]
        scene = make_scene(layout, rng, held_out=True)
        while task not in possible_tasks(scene):
            scene = make_scene(layout, rng, held_out=True)
        history = tuple(
            ask(scene, language, rng.choice(possible_tasks(scene)), rng) for _ in range(turns - 1)
        )
        question, answer = ask(scene, language, task, rng)
        samples.append(Sample(scene.picture, language, task, layout.name, question, answer, history))
    return samples
