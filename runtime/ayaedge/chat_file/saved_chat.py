"""What a saved conversation holds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FORMAT_VERSION = 1


@dataclass(frozen=True)
class SavedImage:
    """An image as it was cut up; `of` makes one. Two are equal if their hashes, sizes and facts are."""

    sha256: str
    """Hexadecimal, of the tiles: `tiles_sha256`."""
    tiles: NDArray[np.uint8] = field(compare=False, repr=False)
    """(n, S, S, 3)."""
    size: tuple[int, int]
    """Width and height of the original, pixels."""
    facts: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Whatever else JSON can hold; whole numbers of 20 digits at most."""

    @classmethod
    def of(
        cls, tiles: NDArray[np.uint8], size: tuple[int, int], facts: Mapping[str, object] | None = None
    ) -> SavedImage:
        """An image of these tiles (n, S, S, 3)."""
        return cls(tiles_sha256(tiles), tiles, size, facts or {})


@dataclass(frozen=True)
class SavedTurn:
    """A question and its answer."""

    question: str
    images: tuple[SavedImage, ...]
    answer: str
    ids: tuple[int, ...] | None
    """Tokens of the answer, if they are known."""
    stop_reason: str
    """`stop`, `length` or `cancelled`."""


@dataclass(frozen=True)
class SavedState:
    """What a decoder had computed."""

    key: str
    """SHA-256 in hexadecimal of the model and the prompt's beginning to which it belongs."""
    count: int
    """Positions."""
    data: NDArray[np.uint8] = field(compare=False, repr=False)
    """(bytes,): a sequence state of llama.cpp."""


@dataclass(frozen=True)
class SavedChat:
    """A conversation."""

    model: str
    """Name of the bundle, for people."""
    system: str | None
    turns: tuple[SavedTurn, ...]
    state: SavedState | None = None


def tiles_sha256(tiles: NDArray[np.uint8]) -> str:
    """SHA-256 in hexadecimal of tiles (n, S, S, 3) and their shape."""
    digest = hashlib.sha256(" ".join(map(str, tiles.shape)).encode() + b"\n")
    digest.update(np.ascontiguousarray(tiles).data)
    return digest.hexdigest()
