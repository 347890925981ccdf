from __future__ import annotations

import base64
import decimal
import io
import locale
import logging
import os
import random
import signal
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from ayaedge import ImageError
from ayaedge.images.load import MAX_PIXELS, ImageInput, list_images, load_image, take_image

CASES = Path(__file__).parents[4] / "shared" / "cases"
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png(pixels: np.ndarray = PIXELS) -> bytes:
    return encoded(Image.fromarray(pixels))


def test_every_kind_of_input_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "图片 é.png"
    path.write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    with path.open("rb") as file, path.open("rb", buffering=0) as unbuffered:
        inputs: list[ImageInput] = [
            path, str(path), path.as_uri(), f"file://localhost{path}", png(), bytearray(png()), memoryview(png()), url,
            io.BytesIO(png()), file, unbuffered, Image.fromarray(PIXELS), PIXELS,
        ]  # fmt: skip
        for image in inputs:
            np.testing.assert_array_equal(load_image(image), PIXELS)
            np.testing.assert_array_equal(load_image(take_image(image)), PIXELS)
            assert list_images(image) == [image] or list_images(image)[0] is image


UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}  # fmt: skip
WAYS_TO_SAVE: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg", "quality": 100}), ("JPEG", {"quality": 100, "subsampling": 0}),
    ("MPO", {"quality": 100, "subsampling": 0}),
]  # fmt: skip
SMOOTH = np.linspace(0, 200, 24 * 16 * 3).astype(np.uint8).reshape(16, 24, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "options"), WAYS_TO_SAVE)
def test_images_are_turned_upright(form: str, options: dict[str, Any], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = load_image(encoded(Image.fromarray(SMOOTH), form, **options))
    file = encoded(Image.fromarray(SMOOTH), form, exif=exif, **options)
    np.testing.assert_array_equal(load_image(file), UPRIGHT[orientation](plain))
    with Image.open(io.BytesIO(file)) as image:
        np.testing.assert_array_equal(load_image(image), UPRIGHT[orientation](plain))


def odd_exif(tag: int, kind: int, *, order: str = "<") -> bytes:
    """EXIF of an image that is to be turned to the right, and of one tag whose value is not what it should be."""
    odd = struct.pack(f"{order}HHI4s", tag, kind, 4, b"abc\0")
    turned = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    entries = odd + turned if tag < 0x0112 else turned + odd
    mark = b"II" if order == "<" else b"MM"
    return b"Exif\0\0" + mark + struct.pack(f"{order}HIH", 42, 8, 2) + entries + bytes(4)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [2, 3, 5, 7, 12, 0, 99])
@pytest.mark.parametrize("tag", [0x0100, 0x0103, 0x011A, 0x0128, 0x8769, 0x8825, 0xA005])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_an_odd_tag_of_exif_does_not_hinder_turning(form: str, tag: int, kind: int, order: str) -> None:
    options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {"lossless": True}
    plain = load_image(encoded(Image.fromarray(SMOOTH), form, **options))
    file = encoded(Image.fromarray(SMOOTH), form, exif=odd_exif(tag, kind, order=order), **options)
    np.testing.assert_array_equal(load_image(file), np.rot90(plain, -1))


@pytest.mark.parametrize("name", ["ImageWidth.jpg", "XResolution.jpg"])
def test_images_of_people_with_an_odd_tag_are_turned(name: str) -> None:
    if not (CASES / name).is_file():
        pytest.skip("the collected images are not here")
    assert load_image(CASES / name).shape == (480, 320, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(CASES / name) as image:
            np.testing.assert_array_equal(load_image(image), load_image(CASES / name))


def test_a_pil_image_is_turned_as_its_owner_says_now() -> None:
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(load_image(image), np.rot90(PIXELS, -1))


def test_an_orientation_in_xmp_counts_where_exif_has_none() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    file = encoded(Image.fromarray(PIXELS), "WEBP", lossless=True, xmp=xmp)
    np.testing.assert_array_equal(load_image(file), np.rot90(PIXELS, -1))
    exif = Image.Exif()
    exif[0x0112] = 1
    file = encoded(Image.fromarray(PIXELS), "WEBP", lossless=True, xmp=xmp, exif=exif)
    np.testing.assert_array_equal(load_image(file), PIXELS)


def test_gray_is_spread() -> None:
    gray = PIXELS[:, :, 0]
    np.testing.assert_array_equal(load_image(gray), np.dstack([gray] * 3))
    np.testing.assert_array_equal(load_image(gray[:, :, None]), np.dstack([gray] * 3))
    np.testing.assert_array_equal(load_image(Image.fromarray(gray)), np.dstack([gray] * 3))


def test_a_palette_and_one_bit_images_are_expanded() -> None:
    assert load_image(Image.fromarray(PIXELS).convert("P")).shape == PIXELS.shape
    assert set(np.unique(load_image(Image.fromarray(PIXELS).convert("1")))) <= {0, 255}


CUT_OUT = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
CUT_OUT[:10, :, 3] = 0
CUT_OUT[10, :, 3] = 51


def on_white(pixels: np.ndarray) -> np.ndarray:
    alpha = pixels[:, :, 3:].astype(float) / 255
    return np.rint(pixels[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def test_a_cut_out_image_is_laid_on_white() -> None:
    opened, expected = Image.fromarray(CUT_OUT), on_white(CUT_OUT)
    assert (expected[:10] == 255).all()
    for image in (
        opened, CUT_OUT, encoded(opened), encoded(opened, "WEBP", lossless=True, exact=True),
        encoded(opened, "TIFF"), encoded(opened, "TIFF", compression="tiff_lzw"), encoded(opened, "TGA"),
    ):  # fmt: skip
        np.testing.assert_allclose(load_image(image).astype(int), expected, atol=1)
    gray = opened.convert("LA")
    assert (load_image(gray)[:10] == 255).all()
    assert (load_image(encoded(gray))[:10] == 255).all()
    assert (load_image(opened.convert("RGBa"))[:10] == 255).all()
    assert (load_image(opened.convert("LA").convert("La"))[:10] == 255).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1", "I;16"])
def test_a_transparent_colour_is_laid_on_white(mode: str) -> None:
    """A file may name one colour, or give each of a palette its alpha."""
    dark = np.zeros((4, 6), np.uint16 if mode == "I;16" else np.uint8)
    dark[2:] = 255 if mode == "1" else 200  # nothing to dither
    image = Image.fromarray(dark) if mode in ("L", "I;16") else Image.fromarray(dark).convert(mode)
    colour: Any = (0, 0, 0) if mode == "RGB" else 0
    found = load_image(encoded(image, transparency=colour))
    assert (found[:2] == 255).all()
    np.testing.assert_array_equal(found[2:], load_image(image)[2:])
    if mode == "P":
        found = load_image(encoded(image, transparency=bytes([0] + [255] * 255)))
        assert (found[:2] == 255).all()
        np.testing.assert_array_equal(found[2:], load_image(image)[2:])


def test_the_references_way_with_alpha_can_be_had() -> None:
    np.testing.assert_array_equal(load_image(Image.fromarray(CUT_OUT).convert("RGB")), PIXELS)
    np.testing.assert_array_equal(load_image(CUT_OUT[:, :, :3]), PIXELS)


def test_alpha_that_hides_nothing_changes_nothing() -> None:
    opaque = CUT_OUT.copy()
    opaque[:, :, 3] = 255
    for image in (opaque, Image.fromarray(opaque), png(opaque)):
        np.testing.assert_array_equal(load_image(image), PIXELS)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "LA", "PA"]
)
def test_a_pil_image_without_transparency_is_converted_as_in_the_reference(mode: str) -> None:
    image = Image.fromarray(PIXELS)
    image = image.convert("P").convert(mode) if mode == "PA" else image.convert(mode)
    expected = np.asarray(image.convert("RGB"))
    before = image.tobytes(), image.info.copy(), image.getpalette() if mode == "P" else None
    np.testing.assert_array_equal(load_image(image), expected)
    assert (image.tobytes(), image.info, image.getpalette() if mode == "P" else None) == before


DEEP = np.array([[0, 128, 129, 257, 32_896, 65_535]], np.uint16)
"""Just below and above half of 257; the middle; the ends."""
SHALLOW = np.array([0, 0, 1, 1, 128, 255], np.uint8)


def tiff(
    values: np.ndarray, *, bits: int = 16, photometric: int = 1, sample_format: int = 1, more: bytes = b""
) -> bytes:
    """A TIFF of one row, little-endian or big-endian as its values are; `more` is one tag behind the others."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    width, data = values.shape[1] * values.dtype.itemsize * 8 // bits, values.tobytes()
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(data),
            339: sample_format}  # fmt: skip
    count = len(tags) + bool(more)
    tags[273] = 8 + 2 + 12 * count + 4
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = (b"MM" if order == ">" else b"II") + struct.pack(f"{order}HIH", 42, 8, count)
    return head + entries + more + bytes(4) + data


def test_values_of_sixteen_bits_are_divided_by_257() -> None:
    deep = Image.fromarray(DEEP)
    pgm = b"P5 6 1 65535\n" + DEEP.astype(">u2").tobytes()
    for image in (
        deep, encoded(deep), encoded(deep, "TIFF"), encoded(deep, "TIFF", compression="tiff_lzw"), pgm,
        encoded(deep, "JPEG2000"), tiff(DEEP.astype("<u2")), tiff(DEEP.astype(">u2")),
    ):  # fmt: skip
        np.testing.assert_array_equal(load_image(image), np.dstack([SHALLOW[None]] * 3))
        if isinstance(image, bytes):
            with Image.open(io.BytesIO(image)) as opened:
                np.testing.assert_array_equal(load_image(opened), np.dstack([SHALLOW[None]] * 3))


def test_values_of_other_known_ranges_are_scaled() -> None:
    assert load_image(tiff(DEEP, photometric=0))[0, :, 0].tolist() == [255, 255, 254, 254, 127, 0]
    twelve = np.frombuffer(bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x00]), np.uint8)[None]
    assert load_image(tiff(twelve, bits=12))[0, :, 0].tolist() == [0, 128, 255, 0]
    assert load_image(b"P2 3 1 1023\n0 512 1023\n")[0, :, 0].tolist() == [0, 128, 255]


def test_deep_colours_come_as_eight_bits() -> None:
    """Pillow itself takes their upper halves."""
    row = b"\0" + struct.pack(">6H", 0, 32_896, 65_535, 257, 514, 65_279)
    file = b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data)
        for kind, data in [
            (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(row)),
            (b"IEND", b""),
        ]
    )
    assert load_image(file).tolist() == [[[0, 128, 255], [1, 2, 254]]]


@pytest.mark.parametrize(
    "image",
    [
        tiff(np.array([[0, 0.5, 1]], np.float32), bits=32, sample_format=3),
        tiff(np.array([[0, 70_000, 1 << 31]], np.uint32), bits=32),
        tiff(np.array([[-5, 70_000, 3]], np.int32), bits=32, sample_format=2),
        tiff(np.array([[-5, 7, 3]], np.int16), sample_format=2),
        b"Pf 3 1 -1\n" + np.array([0, 0.5, 1], np.float32).tobytes(),
        Image.fromarray(np.array([[0, 0.5, 1]], np.float32)),
        Image.fromarray(np.array([[0, 70_000, 3]], np.int32)),
    ],
)
def test_values_whose_range_nobody_knows_are_an_error_that_says_what_to_do(image: ImageInput) -> None:
    with pytest.raises(
        ImageError, match=r"numbers from .* to .* black and white: scale them to 0 \.\.\. 255"
    ):
        load_image(image)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG whose header claims 60,000 x 60,000 pixels."""
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
        (b"not an image at all", "not an image in a format"),
        (png()[:-40], "damaged or incomplete"),
        (png()[:30], "not an image in a format"),
        ("", "path of an image is empty"),
        ("HTTP://example.org/a.png", "works offline"),
        ("file:///no/such/a.png", "no image at /no/such/a.png"),
        ("file:a.png", "not of the form file:///path"),
        ("file://elsewhere", "not of the form file:///path"),
        ("x" * 5000, "cannot be read"),
        (bomb(), "too large|more than the"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("data:image/png,plain", "not of the form"),
        ("https://example.org/a.png", "works offline"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(H, W\)"),
        (np.zeros((5, 5, 3), np.float32), "must be uint8"),
        (np.zeros((5, 5), np.uint16), "must be uint8, from 0 to 255"),
        (42, "not int"),
        (io.StringIO("x"), "gives str, not bytes: open it with mode 'rb'"),
        (io.BytesIO(), "the open file is empty"),
    ],
)
def test_what_is_no_image_gives_one_clear_error(image: ImageInput, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        load_image(image)


def test_a_missing_or_odd_path_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for path, says in [
        (tmp_path / "no.png", "no image at"),
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


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"%PDF-1.7\n", "a PDF: make images of its pages"),
        (b"\r\nleading\n%PDF-1.4", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing: render it"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- by hand -->\n<svg\n/>", "an SVG drawing"),
        ("\ufeff<?xml version='1.0'?><svg />".encode("utf-16-be"), "an SVG drawing"),
        (b"\x1f\x8b\x08\0\0\0", "compressed by gzip"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04xx", "a ZIP archive"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"%!PS-Adobe", "PostScript"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a video"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "an AVIF image"),
        (b"II*\0\x08\0\0\0\0\0", "a TIFF that is damaged, or of a kind"),
    ],
)
def test_files_that_are_no_images_are_named_by_their_first_bytes(
    data: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for image in (data, tmp_path / "photo.png", url):
        with pytest.raises(ImageError, match=says):
            load_image(image)


def test_a_drawing_in_a_plain_data_url_is_named() -> None:
    for url in ("data:image/svg+xml,%3Csvg%20/%3E", "data:image/svg+xml;utf8,<svg />"):
        with pytest.raises(ImageError, match="an SVG drawing"):
            load_image(url)


def test_heic_without_its_reader_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for brand in (b"heic", b"heix", b"mif1"):
        with pytest.raises(ImageError, match=r'HEIC .*pip install "ayaedge\[heif\]"'):
            load_image(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_heic_is_read_and_turned(orientation: int) -> None:
    heif = pytest.importorskip("pillow_heif", reason='pip install "ayaedge[heif]"')
    dark = np.zeros((64, 96, 3), np.uint8)
    dark[:16, :24] = 255  # white at the top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream, openers = io.BytesIO(), dict(Image.OPEN)
    heif.from_pillow(Image.fromarray(dark)).save(stream, quality=90, exif=exif.tobytes())
    difference = load_image(stream.getvalue()).astype(int) - UPRIGHT[orientation](dark)
    assert np.abs(difference).mean() < 5
    assert "HEIF" not in Image.OPEN or "HEIF" in openers  # what the program's own Pillow reads is its affair


@pytest.mark.parametrize(
    "spelling",
    [
        lambda text: "data:image/png;base64," + text,
        lambda text: "DATA:image/png;BASE64," + text,
        lambda text: "data:;base64," + text,
        lambda text: "data:image/png; charset=utf-8; base64 ," + text,
        lambda text: (
            "data:image/png;base64,\r\n" + "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
        ),
        lambda text: " \ndata:image/png;base64," + text + "\n",
        lambda text: (
            "data:image/png;base64," + text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        ),
        lambda text: "data:image/png;base64," + text.replace("+", "%2b") + "%0A",
        lambda text: "data:image/png;base64," + text.rstrip("="),
        lambda text: "data:image/png;base64," + text.translate(str.maketrans("+/", "-_")),
    ],
)
@pytest.mark.parametrize("tail", [b"", b"x", b"xy"])
def test_data_urls_are_read_as_browsers_write_and_read_them(
    spelling: Callable[[str], str], tail: bytes
) -> None:
    text = base64.b64encode(png() + tail).decode()
    assert {"+", "/"} <= set(text)
    np.testing.assert_array_equal(load_image(spelling(text)), PIXELS)


def test_base64_without_its_url_says_what_is_missing() -> None:
    with pytest.raises(ImageError, match="write data:image/png;base64, before it"):
        load_image(base64.b64encode(png()).decode())


def test_an_open_file_is_read_whole_and_left_where_it_was() -> None:
    stream = io.BytesIO(png())
    stream.seek(0, io.SEEK_END)
    end = stream.tell()
    for _ in range(2):
        np.testing.assert_array_equal(load_image(stream), PIXELS)
        assert stream.tell() == end


class Socket(io.RawIOBase):
    """Gives little at a time and cannot be rewound."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part, self._rest = self._rest[:7], self._rest[7:]
        buffer[: len(part)] = part
        return len(part)


def test_a_stream_that_cannot_be_rewound_is_read_to_its_end() -> None:
    np.testing.assert_array_equal(load_image(Socket(png())), PIXELS)


class Upload:
    """As web frameworks have it."""

    async def read(self, size: int = -1) -> bytes:
        return png()


def test_open_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    closed = io.BytesIO(png())
    closed.close()
    upload: Any = Upload()
    with (tmp_path / "new").open("wb") as written:
        for file, says in [(closed, "closed file"), (written, "cannot be read"), (upload, "await file.read")]:
            with pytest.raises(ImageError, match=says):
                take_image(file)


def test_taken_images_do_not_change_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array, buffer, opened = PIXELS.copy(), bytearray(png()), Image.fromarray(PIXELS.copy())
    (tmp_path / "a.png").write_bytes(png())
    monkeypatch.chdir(tmp_path)
    with Image.open("a.png") as lazy, Path("a.png").open("rb") as file:
        given = [
            array,
            array[:, :, :3],
            buffer,
            memoryview(buffer),
            opened,
            lazy,
            file,
            "a.png",
            Path("a.png"),
        ]
        taken = [take_image(image) for image in given]
    array[:] = 0
    buffer[:] = bytes(len(buffer))
    opened.paste((0, 0, 0), (0, 0, *opened.size))
    monkeypatch.chdir("/")
    for image in taken:
        np.testing.assert_array_equal(load_image(image), PIXELS)


def test_taking_a_pil_image_leaves_it_as_it_is() -> None:
    palette = encoded(Image.fromarray(PIXELS).convert("P"), transparency=bytes([0, 7]))
    with Image.open(io.BytesIO(palette)) as image, Image.open(io.BytesIO(palette)) as untouched:
        take_image(image)
        untouched.load()
        assert image == untouched
        assert image.info == untouched.info
        assert image.getpalette("RGBA") == untouched.getpalette("RGBA")


def shared_state() -> dict[str, Any]:
    """What every part of a process sees."""
    return {
        "filters": list(warnings.filters), "list of filters": id(warnings.filters), "shown": warnings.showwarning,
        "pixels": Image.MAX_IMAGE_PIXELS, "truncated": ImageFile.LOAD_TRUNCATED_IMAGES, "environment": dict(os.environ),
        "locale": locale.setlocale(locale.LC_ALL), "recursion": sys.getrecursionlimit(), "numpy": np.geterr(),
        "random": random.getstate(), "decimals": repr(decimal.getcontext()), "log": logging.getLogger().level,
        "signal": signal.getsignal(signal.SIGINT), "directory": Path.cwd(), "drawn": str(np.random.get_state()),
    }  # fmt: skip


def unusual_images() -> list[tuple[str, bytes]]:
    """Those about which Pillow warns."""
    smooth, palette = Image.fromarray(SMOOTH), Image.fromarray(PIXELS).convert("P")
    beyond = b"Exif\0\0II" + struct.pack("<HIHHHIII", 42, 8, 1, 0x011A, 5, 1, 99_999, 0)
    images = b"MPF\0II" + struct.pack("<HIHHHIII", 42, 8, 1, 0xB002, 7, 9999, 8, 0)
    jpeg = encoded(smooth, "JPEG")
    return [
        ("large", png()),
        ("palette with alpha", encoded(palette, transparency=bytes(range(256)))),
        ("EXIF beyond its end", encoded(smooth, "JPEG", exif=beyond)),
        (
            "further images",
            jpeg[:2] + b"\xff\xe2" + struct.pack(">H", len(images) + 2) + images + jpeg[2:],
        ),
        ("a tag with several values", tiff(DEEP, more=struct.pack("<HHIHH", 0x0132 + 0x7000, 3, 2, 1, 2))),
        ("a tag beyond the end", tiff(DEEP, more=struct.pack("<HHII", 0x0153 + 0x7000, 2, 500, 99_999))),
        ("orientation with several values", tiff(DEEP)),
    ]


@pytest.mark.parametrize("action", ["error", "default"])
def test_reading_neither_warns_nor_changes_what_the_whole_process_sees(
    action: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS[:, :, 0].size - 1)
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        warnings.showwarning = lambda *args, **_: pytest.fail(f"warned: {args[0]}")
        before = shared_state()
        for name, data in unusual_images():
            assert load_image(data).size, name
        assert shared_state() == before


def test_a_filter_that_is_set_while_an_image_is_read_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, go, convert = threading.Event(), threading.Event(), Image.Image.convert

    def slow(image: Image.Image, *mode: Any, **options: Any) -> Image.Image:
        reading.set()
        assert go.wait(30)
        return convert(image, *mode, **options)

    monkeypatch.setattr(Image.Image, "convert", slow)
    gray = png(PIXELS[:, :, 0])
    with warnings.catch_warnings():
        thread = threading.Thread(target=load_image, args=(gray,))
        thread.start()
        assert reading.wait(30)
        warnings.filterwarnings("ignore", message="a mark of this test")
        during = list(warnings.filters)
        go.set()
        thread.join()
        assert warnings.filters == during


def test_numpys_faults_may_be_errors_in_the_program() -> None:
    with np.errstate(all="raise"):
        for image in (DEEP_FILE, CUT_OUT, png(CUT_OUT), Image.fromarray(DEEP)):
            assert load_image(image).size


DEEP_FILE = encoded(Image.fromarray(DEEP))
