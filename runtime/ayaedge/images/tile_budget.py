"""How many tiles an image may have, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict, get_args

from ayaedge.checks import check_options, make_plain, one_of, real_number, whole_number
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.tiling import TilePolicy, image_grid, tile_count
from ayaedge.manifest import Manifest, Tiling

DEFAULT_BUDGET = 30.0
"""Seconds to the first token that the policy `auto` allows itself unless told otherwise."""


TEXT_TOKENS = 64
"""Of a question, for choosing tiles: an image gets the same tiles whatever is asked about it."""


@dataclass(frozen=True)
class ImageCost:
    """What becomes of one image."""

    width: int
    """Pixels, upright."""
    height: int
    columns: int
    rows: int
    tiles: int
    """The thumbnail included."""
    tokens: int
    """Image embeddings, without tags and markers."""

    def __str__(self) -> str:
        size, grid = f"{self.width} x {self.height} pixels", f"grid {self.columns} x {self.rows}"
        return f"{size}, {grid}, {self.tiles} tiles, {self.tokens} tokens"


class TileKeywords(TypedDict, total=False):
    """What `TileChoice` says, as keywords of every way to ask."""

    max_tiles: int | None
    tiles: TilePolicy
    budget: float | None


@dataclass(frozen=True)
class TileChoice:
    """How many tiles images get."""

    policy: TilePolicy = "faithful"
    max_tiles: int | None = None
    """Most tiles of a grid, at most the checkpoint's own limit."""
    budget: float | None = None
    """Seconds to the first token for the policy `auto`; `DEFAULT_BUDGET` unless given."""

    def __post_init__(self) -> None:
        make_plain(self)
        check_options(
            whole_number("max_tiles", self.max_tiles, least=1, optional=True),
            one_of("tiles", self.policy, get_args(TilePolicy)),
            real_number("budget", self.budget, above=0, limits="a number of seconds above 0", optional=True),
            'budget needs tiles="auto"'
            if self.budget is not None and isinstance(self.policy, str) and self.policy != "auto"
            else None,
        )


def image_cost(size: tuple[int, int], manifest: Manifest, choice: TileChoice) -> ImageCost:
    """Grid, tiles and tokens of an image of `size` (width, height), after `tiles_within` for the policy `auto`."""
    native = choice.policy == "native"
    grid = image_grid(*size, manifest.tiling, max_tiles=choice.max_tiles, native=native)
    tiles = tile_count(grid)
    return ImageCost(*size, *grid, tiles, tiles * manifest.image_prompt.tokens_per_tile)


def page_size(shape: tuple[int, int], manifest: Manifest, choice: TileChoice) -> tuple[int, int]:
    """Pixels (width, height) in which a page of this shape is drawn: those of its grid of tiles, and no more.

    A page that is drawn has no pixels of its own, so that `native` is as `faithful`. `choice` must be settled.
    """
    columns, rows = image_grid(*shape, manifest.tiling, max_tiles=choice.max_tiles)
    return columns * manifest.tiling.tile_size, rows * manifest.tiling.tile_size


def tiles_within(
    choice: TileChoice,
    sizes: Sequence[tuple[int, int]],
    tiling: Tiling,
    speeds: Callable[[], Speeds],
    *,
    tokens_of: Callable[[int], int],
    around: int,
) -> TileChoice:
    """A choice whose `max_tiles` keeps the images' first token within the budget; others than `auto` as they are.

    `tokens_of` an image's tiles are its prompt tokens, `around` those of the template. Nothing is taken as known. A
    single tile is always allowed.
    """
    if choice.policy != "auto" or not sizes:
        return choice
    measured, budget = speeds(), choice.budget or DEFAULT_BUDGET
    most = min(choice.max_tiles or tiling.max_tiles, tiling.max_tiles)
    for limit in range(most, 0, -1):
        tiles = [tile_count(image_grid(*size, tiling, max_tiles=limit)) for size in sizes]
        count = around + sum(map(tokens_of, tiles)) + TEXT_TOKENS
        if sum(tiles) * measured.tile + measured.prefill(0, count) <= budget:
            break
    return TileChoice("auto", limit, choice.budget)
