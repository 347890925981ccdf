"""Drawn images to calibrate with, so that no image has to be shipped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ayaedge_export.vision.forward import FloatArray

CALIBRATION_SEED = 20


Pixels = NDArray[np.float64]


def calibration_tiles(size: int, *, count: int = 2, seed: int = CALIBRATION_SEED) -> FloatArray:
    """Drawn tiles (count, 3, size, size) in -1..1: photograph, page, diagram and hard textures, joined.

    Two tiles hold two subjects side by side each; one tile holds all four, a quarter each. More tiles, or one
    subject in each, were measured to make no difference that the time would be worth.
    """
    rng = np.random.default_rng(seed)
    half = -(-size // 2)
    subjects = [draw(size, rng) for draw in (_photograph, _page, _diagram, _textures)]
    if count == 1:
        middle = slice(size // 4, size // 4 + half)
        subjects = [subject[:, middle] for subject in subjects]
    halves = [subject[:, :, :half] for subject in subjects]
    pairs = [np.concatenate(halves[i : i + 2], axis=2) for i in (0, 2)]
    tiles = pairs if count == 2 else [np.concatenate(pairs, axis=1)]
    return np.stack(tiles)[:, :, :size, :size].astype(np.float32)


def _photograph(size: int, rng: np.random.Generator) -> Pixels:
    """Noise whose amplitude falls with frequency, as in images of the world."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = 1 / size
    image = np.fft.ifft2(np.fft.fft2(rng.standard_normal((3, size, size))) / frequency).real
    return np.asarray(np.clip(image / (2.5 * image.std()), -1, 1))


def _page(size: int, rng: np.random.Generator) -> Pixels:
    """Lines of letter-like strokes, dark on white."""
    page = np.ones((3, size, size))
    height = max(6, size // 16)
    stroke = max(1, height // 6)
    for top in range(height // 2, size - height, height + height // 2):
        left = height // 2
        while left < size - height:
            ink, bar = rng.uniform(-1, -0.5), top + int(rng.integers(0, height))
            page[:, top + int(rng.integers(0, height // 2)) : top + height, left : left + stroke] = ink
            page[:, bar : bar + stroke, left : left + height // 2] = ink
            left += int(rng.integers(height // 3, height))
    return page


def _diagram(size: int, rng: np.random.Generator) -> Pixels:
    """Discs and squares of one colour each, on a gradient."""
    y, x = np.mgrid[:size, :size] / size
    right, down = rng.uniform(-0.5, 1, (2, 3, 1, 1))
    image: Pixels = np.clip(right * (1 - x) + down * y, -1, 1)
    for shape in range(12):
        across, along = np.abs(np.stack([x, y]) - rng.uniform(0, 1, (2, 1, 1)))
        distance = np.hypot(across, along) if shape % 2 else np.maximum(across, along)
        image = np.where(distance < rng.uniform(0.05, 0.25), rng.uniform(-1, 1, (3, 1, 1)), image)
    return image


def _textures(size: int, rng: np.random.Generator) -> Pixels:
    """A flat quarter, a finely chequered quarter, and white noise."""
    image, half = rng.uniform(-1, 1, (3, size, size)), size // 2
    y, x = np.mgrid[:half, :half] // 2
    image[:, :half, :half] = rng.uniform(-1, 1, (3, 1, 1))
    image[:, -half:, -half:] = 2 * ((x + y) % 2) - 1
    return image
