"""What two models are compared on: windows of text in each language, and of text behind an image.

Builds token ids; which models read them, and what is computed from their answers, is decided elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ayaedge.errors import InvalidOptionError
from ayaedge.files import read_text
from ayaedge.images.load import load_image
from ayaedge.images.tiling import split_tiles
from ayaedge.manifest import Manifest
from ayaedge.text.prompt import Message, Prompt, PromptBuilder
from ayaedge.untrusted.json_text import parse_json
from ayaedge_export.evaluation.sample_text import SENTENCES

BUILTIN = "builtin"
UNNAMED = "text"
"""The language of a file that names none."""
WINDOW = 512
"""Tokens of a window of text."""
IMAGE_TEXT = 64
"""Tokens of text behind an image."""
IMAGES = 4
"""Different images that are drawn."""
_SHORTEST = 8
"""Tokens that the last window of a language must have to count, if it is not the only one."""

_CHARACTERS_PER_TOKEN = 16
"""More than a token has on average in any language."""

Passages = Mapping[str, Sequence[str]]
"""Texts of each language."""


@dataclass(frozen=True)
class Window:
    """One sequence that both models read from its beginning."""

    key: str
    """Unique and stable: `fr/0`, `fr/image`."""
    language: str
    prompt: Prompt
    first: int
    """The first position whose prediction is compared."""
    image: int | None = None
    """Number of the image in front of the text, below `IMAGES` if it is drawn."""
    tiles: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    """Those (n, S, S, 3) of images that are not drawn."""

    def ranges(self, longest: int) -> Iterator[tuple[int, int]]:
        """Positions in order, in ranges of at most `longest` that lie wholly inside or outside the image."""
        edges = [0, len(self.prompt.ids)]
        edges += [edge for span in self.prompt.images for edge in (span.start, span.stop)]
        edges = sorted(set(edges))
        for start, stop in pairwise(edges):
            for first in range(start, stop, longest):
                yield first, min(first + longest, stop)

    def in_image(self, position: int) -> bool:
        """Whether a position belongs to the image, its tags and markers included."""
        return any(span.start <= position < span.stop for span in self.prompt.images)


def read_passages(source: str | Path) -> Passages:
    """Texts by language: the builtin ones, or those of a file.

    A file of JSON lines has an object with `text` and, if it likes, `language` in each; any other file is text whose
    paragraphs are separated by empty lines. InvalidOptionError says what cannot be read.
    """
    if str(source) == BUILTIN:
        return {language: [sentence] for language, sentence in SENTENCES.items()}
    path = Path(source)
    try:
        content = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidOptionError(f"the text {path} cannot be read: {error}") from None
    passages: dict[str, list[str]] = {}
    for language, text in _json_lines(path, content) if _is_json(path, content) else _paragraphs(content):
        if text.strip():
            passages.setdefault(language, []).append(text.strip())
    if not passages:
        raise InvalidOptionError(f"there is no text in {path}")
    return passages


def make_windows(
    passages: Passages,
    manifest: Manifest,
    tokenize: Callable[[str], list[int]],
    *,
    length: int = WINDOW,
    images: bool = True,
) -> list[Window]:
    """All windows: each language's text in pieces of at most `length` tokens, then one window behind an image."""
    windows = []
    for language, texts in passages.items():
        ids = tokenize(unicodedata.normalize("NFC", "\n".join(texts)))
        for number, start in enumerate(range(0, len(ids), length - 1)):
            piece = ids[start : start + length - 1]
            if len(piece) >= _SHORTEST or number == 0:
                prompt = Prompt((manifest.tokens.bos, *piece), ())
                windows.append(Window(f"{language}/{number}", language, prompt, first=1))
    if images:
        builder = PromptBuilder(manifest, tokenize)
        for number, (language, texts) in enumerate(passages.items()):
            windows.append(_image_window(builder, manifest, language, texts, number % IMAGES))
    return windows


def tiles_of(window: Window, manifest: Manifest) -> NDArray[np.uint8]:
    """The tiles (n, S, S, 3) of the images in front of a window's text."""
    assert window.image is not None
    return drawn_tiles(window.image, manifest) if window.tiles is None else window.tiles


def drawn_tiles(number: int, manifest: Manifest) -> NDArray[np.uint8]:
    """The tiles (n, S, S, 3) of drawn image `number`."""
    return split_tiles(
        load_image(draw_image(number, manifest.tiling.tile_size)), manifest.tiling, max_tiles=1
    )


def draw_image(number: int, side: int) -> Image.Image:
    """A square image: a smooth background, coloured shapes and a line of text; always the same one."""
    rng = np.random.default_rng([31, number])
    coarse = rng.integers(60, 256, (3, 3, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for index in range(6):
        x, y = rng.uniform(0, 0.7 * side, 2)
        size = rng.uniform(0.1, 0.3) * side
        colour = tuple(int(part) for part in rng.integers(0, 256, 3))
        shape = draw.ellipse if index % 2 else draw.rectangle
        shape((x, y, x + size, y + size), fill=colour)
    draw.text(
        (0.05 * side, 0.8 * side), f"No. {int(rng.integers(1000, 10000))}", fill="black", font_size=side / 8
    )
    return image


def _image_window(
    builder: PromptBuilder, manifest: Manifest, language: str, texts: Sequence[str], image: int
) -> Window:
    tiles = len(drawn_tiles(image, manifest))
    text = "\n".join(texts)[: _CHARACTERS_PER_TOKEN * IMAGE_TEXT]  # enough, and never a whole book
    prompt = builder.build([Message("user", text, 1)], [tiles])
    first = prompt.images[0].stop
    ids = prompt.ids[: first + IMAGE_TEXT]
    return Window(f"{language}/image", language, Prompt(ids, prompt.images), first, image)


def _is_json(path: Path, content: str) -> bool:
    return path.suffix in (".jsonl", ".ndjson") or content.lstrip().startswith("{")


def _json_lines(path: Path, content: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            item: Any = parse_json(line.encode())
        except ValueError as error:
            raise InvalidOptionError(f"{path}, line {number}: {error}") from None
        if not isinstance(item, dict) or not isinstance(item.get("text"), str):
            raise InvalidOptionError(
                f'{path}, line {number}: expected an object like {{"language": "fr", "text": "..."}}'
            )
        yield str(item.get("language", UNNAMED)), item["text"]


def _paragraphs(content: str) -> Iterator[tuple[str, str]]:
    for paragraph in content.replace("\r\n", "\n").split("\n\n"):
        yield UNNAMED, paragraph
