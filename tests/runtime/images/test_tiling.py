from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ayaedge.images.load import load_image
from ayaedge.images.tiling import (
    candidate_grids,
    choose_grid,
    image_grid,
    normalize,
    split_tiles,
    tile_count,
)
from ayaedge.manifest import Tiling

# (width, height, columns, rows, tiles with thumbnail), from the released processor with tiles of 364 px
RELEASED_SIZES = [
    (364, 364, 1, 1, 1),
    (640, 480, 4, 3, 13),
    (480, 640, 3, 4, 13),
    (1000, 3000, 2, 6, 13),
    (3000, 1000, 6, 2, 13),
    (1920, 1080, 4, 2, 9),
    (1080, 1920, 2, 4, 9),
    (50, 50, 1, 1, 1),
    (1, 1000, 1, 12, 13),
    (4000, 4000, 3, 3, 10),
    (800, 600, 4, 3, 13),
    (1024, 768, 4, 3, 13),
    (728, 728, 2, 2, 5),
    (514, 514, 1, 1, 1),
    (515, 515, 2, 2, 5),
    (772, 772, 2, 2, 5),
    (773, 773, 3, 3, 10),
    (40, 30, 4, 3, 13),
    (640, 360, 2, 1, 3),
    (1280, 720, 4, 2, 9),
]
MODES = ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr", "HSV", "LAB"]
"""Those in which a viewer shows what the reference sees, if nothing is transparent."""


def reference_tiles(image: Image.Image, tiling: Tiling, max_tiles: int | None = None) -> NDArray[np.float32]:
    transformers = pytest.importorskip("transformers")
    processor = transformers.GotOcr2ImageProcessor(
        size={"height": tiling.tile_size, "width": tiling.tile_size}, crop_to_patches=True,
        min_patches=tiling.min_tiles, max_patches=max_tiles or tiling.max_tiles,
        image_mean=list(tiling.mean), image_std=list(tiling.std),
    )  # fmt: skip
    return np.asarray(processor(image, return_tensors="np")["pixel_values"])


def our_tiles(image: Image.Image | NDArray[np.uint8], tiling: Tiling) -> NDArray[np.float32]:
    return normalize(split_tiles(load_image(image), tiling), tiling)


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height", "columns", "rows", "count"), RELEASED_SIZES)
def test_released_sizes_get_the_released_grids(
    width: int, height: int, columns: int, rows: int, count: int
) -> None:
    assert choose_grid(width, height, tile_size=364, max_tiles=12) == (columns, rows)
    assert columns * rows + (columns * rows > 1) == count


@pytest.mark.parametrize(("width", "height"), [size[:2] for size in RELEASED_SIZES if size[0] < 3000])
def test_released_sizes_are_bit_exact(width: int, height: int) -> None:
    image = Image.fromarray(noise(width, height))
    expected = reference_tiles(image, Tiling(364))
    np.testing.assert_array_equal(our_tiles(image, Tiling(364)), expected)


@settings(max_examples=250, deadline=None)
@given(
    width=st.integers(4, 400),
    height=st.integers(4, 400),
    tile_size=st.sampled_from([8, 28, 56]),
    max_tiles=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_any_size_is_bit_exact(width: int, height: int, tile_size: int, max_tiles: int, seed: int) -> None:
    tiling = Tiling(tile_size, max_tiles=max_tiles)
    image = Image.fromarray(noise(width, height, seed))
    np.testing.assert_array_equal(our_tiles(image, tiling), reference_tiles(image, tiling))


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=20, deadline=None)
@given(width=st.integers(4, 120), height=st.integers(4, 120), seed=st.integers(0, 2**31))
def test_every_mode_is_bit_exact(mode: str, width: int, height: int, seed: int) -> None:
    image = image_of_mode(mode, noise(width, height, seed))
    np.testing.assert_array_equal(our_tiles(image, Tiling(28)), reference_tiles(image, Tiling(28)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_image_is_bit_exact_if_its_alpha_is_dropped_before(mode: str) -> None:
    image = image_of_mode(mode, noise(60, 40))
    image.putalpha(Image.fromarray(noise(60, 40)[:, :, 1]))
    expected = reference_tiles(image, Tiling(28))
    np.testing.assert_array_equal(our_tiles(image.convert("RGB"), Tiling(28)), expected)
    assert not np.array_equal(our_tiles(image, Tiling(28)), expected)


def image_of_mode(mode: str, pixels: NDArray[np.uint8]) -> Image.Image:
    if mode == "LAB":
        return Image.frombytes("LAB", pixels.shape[1::-1], pixels.tobytes())
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(("mean", "std"), [((0.48, 0.45, 0.4), (0.27, 0.26, 0.28)), ((0.5,) * 3, (0.5,) * 3)])
def test_normalization_rounds_as_the_reference(mean: Any, std: Any) -> None:
    tiling = Tiling(16, mean=mean, std=std)
    image = Image.fromarray(noise(16, 16))
    np.testing.assert_array_equal(our_tiles(image, tiling), reference_tiles(image, tiling))


def test_values_span_minus_one_to_one() -> None:
    extremes = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    values = normalize(extremes, Tiling(4))
    assert values.shape == (2, 3, 4, 4)
    assert (values[0] == -1).all()
    assert (values[1] == 1).all()


@pytest.mark.parametrize(("width", "height"), [(1000, 1), (1000, 3), (1, 1), (3, 1)])
def test_images_of_one_or_three_rows_are_not_taken_for_channels(width: int, height: int) -> None:
    tiles = split_tiles(noise(width, height), Tiling(8))
    grid = choose_grid(width, height, tile_size=8, max_tiles=12)
    assert len(tiles) == grid[0] * grid[1] + (grid != (1, 1))


def test_max_tiles_lowers_the_limit_but_never_raises_it() -> None:
    image = noise(640, 480)
    assert len(split_tiles(image, Tiling(56), max_tiles=1)) == 1
    assert len(split_tiles(image, Tiling(56), max_tiles=4)) == 5
    assert len(split_tiles(image, Tiling(56), max_tiles=99)) == 13
    expected = reference_tiles(Image.fromarray(image), Tiling(56), max_tiles=4)
    np.testing.assert_array_equal(
        normalize(split_tiles(image, Tiling(56), max_tiles=4), Tiling(56)), expected
    )


def test_there_are_35_grids_of_up_to_12_tiles() -> None:
    grids = candidate_grids(1, 12)
    assert len(grids) == 35
    assert list(grids) == sorted(grids, key=lambda grid: grid[0] * grid[1])


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (-1, 5)])
def test_an_image_without_pixels_is_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        choose_grid(width, height, tile_size=56, max_tiles=12)


@pytest.mark.parametrize(
    "size", [(640, 480), (1024, 768), (1280, 960), (1600, 1200), (4000, 300), (100, 50), (364, 364)]
)
def test_native_never_enlarges_an_image(size: tuple[int, int]) -> None:
    tiling = Tiling(tile_size=364)
    columns, rows = image_grid(*size, tiling, native=True)
    assert columns == 1 or columns * 364 <= size[0]
    assert rows == 1 or rows * 364 <= size[1]
    assert columns * rows <= tiling.max_tiles
    tiles = split_tiles(noise(*size), tiling, native=True)
    assert len(tiles) == tile_count((columns, rows))


def test_native_is_faithful_to_an_image_that_is_large_enough() -> None:
    tiling = Tiling(tile_size=28, min_tiles=2)
    image = noise(12 * 28, 12 * 28)
    for width, height in ((12, 12), (12, 9), (12, 3), (5, 12)):
        part = image[: height * 28, : width * 28]
        np.testing.assert_array_equal(split_tiles(part, tiling, native=True), split_tiles(part, tiling))


def test_a_small_image_is_one_tile_natively_whatever_the_least_number_is() -> None:
    assert image_grid(10, 10, Tiling(tile_size=28, min_tiles=4), native=True) == (1, 1)
