from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ayaedge import ImageError
from ayaedge.images import MAX_PIXELS, ImageInput, load_image

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(pixels: np.ndarray = PIXELS) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_every_kind_of_input_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "图片 é.png"
    path.write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    inputs: list[ImageInput] = [
        path,
        str(path),
        png(),
        bytearray(png()),
        url,
        Image.fromarray(PIXELS),
        PIXELS,
    ]
    for image in inputs:
        np.testing.assert_array_equal(load_image(image), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG", exif=exif)
    upright = {
        1: PIXELS, 2: PIXELS[:, ::-1], 3: PIXELS[::-1, ::-1], 4: PIXELS[::-1],
        5: PIXELS.swapaxes(0, 1), 6: np.rot90(PIXELS, -1), 7: PIXELS[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(PIXELS),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(load_image(stream.getvalue()), upright)


def test_alpha_is_dropped_and_gray_is_spread() -> None:
    alpha = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    np.testing.assert_array_equal(load_image(alpha), PIXELS)
    np.testing.assert_array_equal(load_image(Image.fromarray(alpha)), PIXELS)
    gray = PIXELS[:, :, 0]
    np.testing.assert_array_equal(load_image(gray), np.dstack([gray] * 3))
    np.testing.assert_array_equal(load_image(gray[:, :, None]), np.dstack([gray] * 3))


def test_a_palette_and_one_bit_pictures_are_expanded() -> None:
    assert load_image(Image.fromarray(PIXELS).convert("P")).shape == PIXELS.shape
    assert set(np.unique(load_image(Image.fromarray(PIXELS).convert("1")))) <= {0, 255}


def test_sixteen_bit_values_clip_as_in_the_reference() -> None:
    deep = Image.fromarray(np.array([[0, 200, 255, 256, 65535]], np.uint16))
    np.testing.assert_array_equal(load_image(deep)[0, :, 0], np.asarray(deep.convert("RGB"))[0, :, 0])


def bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"", "is empty"),
        (b"not a picture at all", "not a picture in a format"),
        (png()[:-40], "damaged or incomplete"),
        (png()[:30], "not a picture in a format"),
        ("", "path of a picture is empty"),
        ("HTTP://example.org/a.png", "works offline"),
        ("file:///a.png", "works offline"),
        ("x" * 5000, "cannot be read"),
        (bomb(), "too large|more than the"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("data:image/png,plain", "not of the form"),
        ("https://example.org/a.png", "works offline"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(H, W\)"),
        (np.zeros((5, 5, 3), np.float32), "must be uint8"),
        (42, "not int"),
    ],
)
def test_what_is_no_picture_gives_one_clear_error(image: ImageInput, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        load_image(image)


def test_a_missing_or_odd_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for path, says in [
        (tmp_path / "no.png", "no picture at"),
        (tmp_path, "a directory"),
        (tmp_path / "empty.png", "empty"),
    ]:
        with pytest.raises(ImageError, match=says) as caught:
            load_image(path)
        assert path.name in str(caught.value)


def test_an_error_is_also_the_builtin_that_callers_catch() -> None:
    with pytest.raises(ValueError, match="empty"):
        load_image(b"")


def test_a_long_data_url_is_not_repeated_in_the_error() -> None:
    with pytest.raises(ImageError) as caught:
        load_image("data:image/png;base64," + "A" * 100_000)
    assert len(str(caught.value)) < 300


def test_the_limit_is_where_pillow_itself_refuses() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS
