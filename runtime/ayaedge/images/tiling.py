"""Images to tiles: which grid, where the cuts are, and the numbers the vision tower sees.

The rule is the one of the reference's image processor (GotOcr2, Pillow path), bit for bit. This module
knows arrays only: opening files is the job of `ayaedge.images.load`, encoding tiles that of `ayaedge.vision.encoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ayaedge.manifest import Tiling

TilePolicy = Literal["faithful", "native", "auto"]
"""How an image's grid is chosen: by the reference's rule; never larger than the image itself; or as large as a time
allows (which is decided in `ayaedge.planning.costs`)."""


@lru_cache
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with `min_tiles` <= columns * rows <= `max_tiles`, fewest tiles first.

    Grids of equal size stand in the order of their columns; `choose_grid` depends on that order.
    """
    sides = range(1, max_tiles + 1)
    grids = [(c, r) for c in sides for r in sides if min_tiles <= c * r <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(
    width: int, height: int, *, tile_size: int, max_tiles: int, min_tiles: int = 1, native: bool = False
) -> tuple[int, int]:
    """The (columns, rows) whose ratio is nearest to the image's `width` / `height` (pixels).

    Among grids at exactly the same distance the larger one wins if the image covers more than half of
    its area. With `native` no side of the grid exceeds the image's, but one tile is always allowed, whatever
    `min_tiles` says. Raises ValueError if a side is not positive or no grid is allowed.
    """
    if width < 1 or height < 1:
        raise ValueError(f"an image needs at least one pixel, this one has {width} x {height}")
    grids: Sequence[tuple[int, int]] = candidate_grids(1 if native else min_tiles, max_tiles)
    if native:
        limit = max(width // tile_size, 1), max(height // tile_size, 1)
        grids = [(columns, rows) for columns, rows in grids if columns <= limit[0] and rows <= limit[1]]
    if not grids:
        raise ValueError(f"no grid has between {min_tiles} and {max_tiles} tiles")
    ratio = width / height
    best, best_distance = grids[0], float("inf")
    for columns, rows in grids:
        distance = abs(ratio - columns / rows)
        covers_half = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < best_distance or (distance == best_distance and covers_half):
            best, best_distance = (columns, rows), distance
    return best


def image_grid(
    width: int, height: int, tiling: Tiling, *, max_tiles: int | None = None, native: bool = False
) -> tuple[int, int]:
    """The (columns, rows) that `split_tiles` cuts an image of this size into."""
    limit = tiling.max_tiles if max_tiles is None else min(max_tiles, tiling.max_tiles)
    return choose_grid(
        width, height, tile_size=tiling.tile_size, max_tiles=limit, min_tiles=min(tiling.min_tiles, limit),
        native=native,
    )  # fmt: skip


def tile_count(grid: tuple[int, int]) -> int:
    """Tiles of a (columns, rows) grid, the thumbnail included that all but a single tile have."""
    count = grid[0] * grid[1]
    return count + (count > 1)


def split_tiles(
    image: NDArray[np.uint8] | Image.Image,
    tiling: Tiling,
    *,
    max_tiles: int | None = None,
    native: bool = False,
) -> NDArray[np.uint8]:
    """Cut an RGB image, an array (H, W, 3) or PIL's, into tiles (n, S, S, 3): row by row, then a thumbnail of it all.

    The image is stretched to the grid without keeping its ratio, as the reference does. A 1 x 1 grid is
    one tile, without a thumbnail. `max_tiles` lowers the checkpoint's own limit; `native` is that of `choose_grid`.
    """
    whole = image if isinstance(image, Image.Image) else Image.fromarray(image)
    size = tiling.tile_size
    columns, rows = image_grid(*whole.size, tiling, max_tiles=max_tiles, native=native)
    resample = Image.Resampling(tiling.resample)
    canvas = np.asarray(whole.resize((columns * size, rows * size), resample=resample))
    # (rows*S, cols*S, 3) -> (rows, S, cols, S, 3) -> (rows, cols, S, S, 3) -> (n, S, S, 3)
    tiles = canvas.reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    if len(tiles) == 1:
        return tiles
    thumbnail = np.asarray(whole.resize((size, size), resample=resample))
    return np.concatenate([tiles, thumbnail[None]])


def normalize(tiles: NDArray[np.uint8], tiling: Tiling) -> NDArray[np.float32]:
    """8-bit tiles (n, S, S, 3) to the vision tower's input (n, 3, S, S), float32.

    (value * rescale - mean) / std, with the reference's order of roundings: the product in double,
    everything after it in single precision.
    """
    channels_first = tiles.transpose(0, 3, 1, 2)
    result = np.empty(channels_first.shape, np.float32)
    for channel, table in enumerate(_normalization_tables(tiling)):
        result[:, channel] = table[channels_first[:, channel]]
    return result


@lru_cache
def _normalization_tables(tiling: Tiling) -> NDArray[Any]:
    """One row of 256 float32 values for each channel: what each 8-bit value becomes, (3, 256)."""
    rescaled = (np.arange(256) * np.float64(tiling.rescale)).astype(np.float32)
    mean = np.asarray(tiling.mean, np.float32)[:, None]
    std = np.asarray(tiling.std, np.float32)[:, None]
    return (rescaled - mean) / std
