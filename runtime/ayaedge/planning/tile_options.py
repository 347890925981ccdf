"""What each limit on tiles makes of images, before anything is asked: grids, tokens, seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ayaedge.hardware.speeds import Speeds
from ayaedge.images.load import ImageInput, image_size, list_images
from ayaedge.images.pdf import PdfReader
from ayaedge.images.tile_budget import DEFAULT_BUDGET, TEXT_TOKENS, ImageCost, TileChoice, image_cost
from ayaedge.manifest import Manifest, Tiling


@dataclass(frozen=True)
class TileOption:
    """What a limit on tiles does to the images of a question."""

    max_tiles: int
    images: tuple[ImageCost, ...]
    prompt_tokens: int
    """Of all of it, with a question of 64 tokens."""
    seconds: float | None
    """To the first token, nothing being known yet; None where the machine's speeds were not given."""


def prompt_tokens_by_tiles(count_tokens: Callable[..., int], tiling: Tiling) -> dict[int, int]:
    """Tokens of a prompt of one character and an image of so many tiles; 0 tiles are no image.

    `count_tokens` is that of a model.
    """
    counts = {0: count_tokens([{"role": "user", "content": "a"}])}
    for columns in range(1, tiling.max_tiles + 1):
        row = np.zeros((tiling.tile_size, columns * tiling.tile_size, 3), np.uint8)
        content = [{"type": "image", "image": row}, {"type": "text", "text": "a"}]
        messages = [{"role": "user", "content": content}]
        counts[columns + (columns > 1)] = count_tokens(messages, max_tiles=columns)
    return counts


def tile_options(
    sizes: Sequence[tuple[int, int]],
    choice: TileChoice,
    manifest: Manifest,
    counts: Mapping[int, int],
    speeds: Speeds | None,
) -> list[TileOption]:
    """All that limits on tiles make of images of these sizes (width, height), the fewest tiles first."""
    options: list[TileOption] = []
    most = min(choice.max_tiles or manifest.tiling.max_tiles, manifest.tiling.max_tiles)
    for limit in range(1, most + 1):
        at_most = TileChoice(choice.policy, limit, choice.budget)
        images = tuple(image_cost(size, manifest, at_most) for size in sizes)
        if options and images == options[-1].images:
            continue
        tokens = counts[0] + TEXT_TOKENS + sum(counts[image.tiles] - counts[0] for image in images)
        options.append(TileOption(limit, images, tokens, _seconds(images, tokens, speeds)))
    return options


def options_of(
    images: Iterable[ImageInput] | ImageInput,
    choice: TileChoice,
    manifest: Manifest,
    counts: Mapping[int, int],
    speeds: Speeds | None,
) -> list[TileOption]:
    """`tile_options` of images that are only looked at; ImageError for one that cannot be read."""
    with PdfReader() as reader:
        sizes = [image_size(image, reader=reader) for image in list_images(images)]
    return tile_options(sizes, choice, manifest, counts, speeds)


def chosen(options: Sequence[TileOption], choice: TileChoice) -> TileOption:
    """What a request gets: within a budget the most that it allows, but at least the fewest tiles."""
    budget = choice.budget or DEFAULT_BUDGET
    within = [one for one in options if choice.policy != "auto" or (one.seconds or 0.0) <= budget]
    return within[-1] if within else options[0]


def _seconds(images: Sequence[ImageCost], tokens: int, speeds: Speeds | None) -> float | None:
    if speeds is None:
        return None
    return round(sum(image.tiles for image in images) * speeds.tile + speeds.prefill(0, tokens), 3)
