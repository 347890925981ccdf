"""Images that were read and cut into tiles, perhaps encoded too: what a question needs of them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ayaedge.images.load import ImageInput
from ayaedge.images.tile_budget import ImageCost, TileChoice, image_cost
from ayaedge.images.tiling import split_tiles
from ayaedge.manifest import Manifest


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image that a model has read, to be used in any number of its questions.

    It may be used with every model that was loaded from the same bundle and runs its vision tower in the same way.
    """

    cost: ImageCost
    """Size, grid, tiles and tokens."""
    tiles: NDArray[np.uint8] = field(repr=False)
    """(n, S, S, 3), the thumbnail last."""
    encoder: bytes = field(repr=False)
    """Identifies the bundle, and how its vision tower runs."""
    embeddings: NDArray[np.float32] | None = field(default=None, repr=False)
    """(n, T, hidden); None if they are computed when a question needs them."""

    @property
    def key(self) -> bytes:
        """SHA-256 of the encoder and the tiles."""
        return hashlib.sha256(self.encoder + self.tiles.tobytes()).digest()

    def to_image(self) -> Image.Image:
        """What the model saw, as an RGB image of the size that was given: the tiles without the thumbnail, joined."""
        columns, rows, side = self.cost.columns, self.cost.rows, self.tiles.shape[1]
        grid = self.tiles[: columns * rows].reshape(rows, columns, side, side, 3).swapaxes(1, 2)
        whole = Image.fromarray(grid.reshape(rows * side, columns * side, 3))
        return whole.resize((self.cost.width, self.cost.height))


AnyImage: TypeAlias = ImageInput | EncodedImage
"""What may be given as an image: one to read, or one that was read."""


def cut_image(image: Image.Image, manifest: Manifest, choice: TileChoice, encoder: bytes) -> EncodedImage:
    """An RGB image in tiles, not yet encoded; `choice` must be settled (`costs.tiles_within`)."""
    tiles = split_tiles(image, manifest.tiling, max_tiles=choice.max_tiles, native=choice.policy == "native")
    return EncodedImage(image_cost(image.size, manifest, choice), tiles, encoder)
