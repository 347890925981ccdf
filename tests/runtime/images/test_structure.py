"""Small files that ask for much: refused before they are decoded, by limits that no program's own files reach."""

from __future__ import annotations

import base64
import io
import math
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ayaedge import AyaVision, ImageError
from ayaedge.images.load import image_size, load_image, load_rgb
from ayaedge.images.structure import MOST_SCANNED_PIXELS, MOST_SCANS

LARGE = 13_377
"""Pixels of a side: as many as are decoded."""
PIXEL = zlib.compress(bytes(4))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def scans(count: int, side: int = 24) -> bytes:
    """A progressive JPEG of this many scans, the last one repeated."""
    data = saved(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[last:end] * (count - data.count(b"\xff\xda")) + b"\xff\xd9"


def wide_scans(count: int, side: int) -> bytes:
    """The same of a larger image: a head that claims it is enough for what is refused."""
    data = bytearray(scans(count))
    place = data.find(b"\xff\xc2") + 5
    data[place : place + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def notes(count: int) -> bytes:
    """A segment of a JPEG with this many of Photoshop's empty resources."""
    body = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * count
    return b"\xff\xed" + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*more: bytes, side: int = 1) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", PIXEL) + chunk(b"IEND")


def gif(*before: bytes) -> bytes:
    data = saved(Image.new("L", (1, 1)), "GIF")
    place = 13 + (3 << (data[10] & 7) + 1)
    return data[:place] + b"".join(before) + data[place:]


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"", twice: tuple[int, ...] = ()) -> bytes:
    """A grey TIFF of one pixel, but for `tags`: type, count, and value; `data` stands behind the directory."""
    plain = {256: (4, 1, 1), 257: (4, 1, 1), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8),
             277: (3, 1, 1), 278: (4, 1, 1), 279: (4, 1, 1)}  # fmt: skip
    entries = sorted((plain | tags).items())
    entries += [(tag, (plain | tags)[tag]) for tag in twice]
    rows = b"".join(struct.pack("<HHII", tag, *value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4) + data


def jpeg_in_tiff(count: int) -> bytes:
    side, data = 24, scans(count)
    tags = {256: (4, 1, side), 257: (4, 1, side), 259: (3, 1, 7), 273: (4, 1, 8 + 2 + 12 * 9 + 4), 278: (4, 1, side),
            279: (4, 1, len(data))}  # fmt: skip
    return tiff(tags, data)


def jpeg_2000(side: int, tile: int, precincts: int | None = None, *, boxes: bool = False) -> bytes:
    data = bytearray(saved(Image.new("L", (64, 64)), "JPEG2000", no_jp2=True))
    place = data.find(b"\xff\x51") + 6
    data[place : place + 8] = struct.pack(">II", side, side)
    data[place + 16 : place + 24] = struct.pack(">II", tile, tile)
    style = data.find(b"\xff\x52")
    if precincts is not None:
        sizes = bytes([precincts] * (data[style + 9] + 1))
        data[style + 4] |= 1
        data[style + 2 : style + 4] = struct.pack(">H", 12 + len(sizes))
        data[style + 14 : style + 14] = sizes
    if not boxes:
        return bytes(data)
    decoy = b"xml " + bytes(jpeg_2000(64, 64))
    head = b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I", 4 + len(decoy)) + decoy
    return head + struct.pack(">I", 8 + len(data)) + b"jp2c" + bytes(data)


def run_length_bmp(side: int, body: bytes) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + head + bytes(1024) + body


def ico(part: bytes, count: int = 1) -> bytes:
    entry = struct.pack("<BBBBHHII", 1, 1, 0, 0, 1, 32, len(part), 6 + 16 * count)
    return struct.pack("<HHH", 0, 1, count) + entry * count + part


def icns(part: bytes, *more: bytes) -> bytes:
    body = b"ic07" + struct.pack(">I", 8 + len(part)) + part + b"".join(more)
    return b"icns" + struct.pack(">I", 8 + len(body)) + body


def dib(side: int) -> bytes:
    return struct.pack("<IiiHHIIiiII", 40, side, 2 * side, 1, 32, 0, 0, 0, 0, 0, 0) + bytes(64)


def pages(count: int) -> bytes:
    """Directories of a TIFF, one leading to the next, which begin 122 bytes behind its start."""
    directory = tiff({})[8:118]
    places = [122 + 114 * number for number in range(1, count)] + [0]
    return b"".join(directory + struct.pack("<I", place) for place in places)


EMPTY = struct.pack(">4sI", b"aaaa", 8)
PROFILE = chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(900_000), 9))
REFUSED: dict[str, Callable[[], tuple[bytes, str]]] = {
    "JPEG of 506 scans": lambda: (scans(506), "more than 100 scans"),
    "JPEG of many scans of a large image": lambda: (wide_scans(90, LARGE), "90 scans of 178944129 pixels"),
    "JPEG of a hundred thousand segments": lambda: (
        b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000 + scans(6)[2:], "10000 segments"),
    "JPEG of a million notes": lambda: (
        scans(1)[:2] + notes(5000) * 210 + scans(1)[2:], "more than 100000 of Photoshop's notes"),
    "JPEG of 506 scans behind a thumbnail's end": lambda: (
        b"\xff\xd8\xff\xe5\0\x04\xff\xd9" + scans(506)[2:], "more than 100 scans"),
    "JPEG of 506 scans in a TIFF": lambda: (jpeg_in_tiff(506), "506 scans"),
    "PNG of a million chunks": lambda: (png(chunk(b"aaAa") * 1_000_000), "more than 200000 chunks"),
    "PNG of twenty profiles": lambda: (png(PROFILE * 20), "more than 10 colour profiles"),
    "PNG of an endless text": lambda: (png(chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(9_000_000), 9))), "too large"),
    "GIF of ten thousand comments": lambda: (gif(b"!\xfe\1a\0" * 10_000), "more than 1000 comments"),
    "GIF of one endless comment": lambda: (gif(b"!\xfe" + b"\1a" * 200_000 + b"\0"), "more than 100000 blocks"),
    "GIF of junk": lambda: (gif(bytes(200_000)), "more than 100000 bytes between"),
    "TIFF in a million strips": lambda: (
        tiff({257: (4, 1, 10**6), 273: (4, 10**6, 122), 279: (4, 10**6, 122)}, struct.pack("<I", 8) * 10**6),
        "1000000 values"),
    "TIFF in a million strips by its size": lambda: (tiff({257: (4, 1, 10**6), 259: (3, 1, 32773)}), "cut into 10"),
    "TIFF in tiny tiles": lambda: (
        tiff({256: (4, 1, 8000), 257: (4, 1, 8000), 259: (3, 1, 32773), 322: (4, 1, 16), 323: (4, 1, 16),
              324: (4, 1, 8), 325: (4, 1, 8)}), "cut into 250000"),
    "TIFF with a tag of a million values": lambda: (tiff({258: (3, 10**6, 122)}, bytes(2 * 10**6)), "for tag 258"),
    "TIFF with a tag that is there twice": lambda: (tiff({}, twice=(278,)), "tag 278 twice"),
    "TIFF of ten thousand tags": lambda: (tiff(dict.fromkeys(range(40000, 50000), (3, 1, 1))), "more than 4096 tags"),
    "JPEG 2000 of large size": lambda: (jpeg_2000(LARGE, LARGE), "178944129 pixels"),
    "JPEG 2000 in single pixels": lambda: (jpeg_2000(255, 1), "65025 tiles"),
    "JPEG 2000 in tiny precincts": lambda: (jpeg_2000(2000, 2000, 0), "precincts"),
    "JPEG 2000 in boxes": lambda: (jpeg_2000(2000, 2000, 0, boxes=True), "precincts"),
    "BMP in runs": lambda: (run_length_bmp(LARGE, b"\1\0\0\0" * LARGE), "178944129 pixels"),
    "BMP in many runs": lambda: (run_length_bmp(1000, b"\0\2\0\0" * 600_000), "2401078 bytes"),
    "QOI of many bytes": lambda: (b"qoif" + struct.pack(">IIBB", 2000, 2000, 3, 0) + bytes(4_000_000), "4000014 bytes"),
    "ICO with a large PNG": lambda: (ico(png(side=LARGE)), "13377 x 13377 pixels, no icon"),
    "ICO with a large bitmap": lambda: (ico(dib(LARGE)), "no icon"),
    "ICO with a PNG of twenty profiles": lambda: (ico(png(PROFILE * 20)), "more than 10 colour profiles"),
    "ICNS with a large JPEG 2000": lambda: (icns(jpeg_2000(LARGE, LARGE)), "no icon"),
    "ICNS with JPEG 2000 in single pixels": lambda: (icns(jpeg_2000(255, 1)), "65025 tiles"),
    "ICNS of many parts": lambda: (icns(png(side=128), EMPTY * 100_000), "more than 10000 images"),
    "PPM of comments": lambda: (b"P6\n#" + b"a" * 1_000_000 + b"\n1 1 255\n" + bytes(3), "header of more than 65536"),
    "PPM of many comments": lambda: (b"P6\n" + b"#\n" * 500_000 + b"1 1 255\n" + bytes(3), "header of more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_asks_for_too_much_is_refused_before_it_is_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, says = REFUSED[name]()
    Image.init()
    if name != "PNG of an endless text":  # which Pillow refuses
        monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    for read in load_image, image_size:
        started = time.process_time()
        with pytest.raises(ImageError, match=says):
            read(data)
        assert time.process_time() - started < 2


WELCOME: dict[str, Callable[[], bytes]] = {
    "JPEG of a hundred scans": lambda: scans(MOST_SCANS),
    "JPEG with marks of scans in its notes": lambda: (
        scans(6)[:2] + b"\xff\xe5\x08\2" + b"\xff\xda" * 1024 + scans(6)[2:]),
    "JPEG with Photoshop's notes": lambda: scans(1)[:2] + notes(300) + scans(1)[2:],
    "JPEG in a TIFF": lambda: jpeg_in_tiff(6),
    "JPEG with fill bytes": lambda: scans(6).replace(b"\xff\xc2", b"\xff\xff\xff\xc2", 1),
    "JPEG followed by others": lambda: scans(6) + scans(99) * 3,
    "PNG with texts and a profile": lambda: png(*[chunk(b"tEXt", b"k%d\0v" % n) for n in range(300)], PROFILE),
    "PNG of many small parts": lambda: png(chunk(b"IDAT") * 70_000),
    "GIF of a hundred thousand frames": lambda: gif()[:-1] + b",\0\0\0\0\1\0\1\0\0\2\2\x44\1\0" * 100_000 + b";",
    "GIF with comments": lambda: gif(b"!\xfe\5hello\0" * 100),
    "TIFF of ten thousand pages": lambda: tiff({})[:118] + struct.pack("<I", 122) + pages(10_000),
    "JPEG 2000 in tiles": lambda: saved(Image.new("L", (300, 300)), "JPEG2000", tile_size=(32, 32)),
    "JPEG 2000 in precincts": lambda: saved(
        Image.new("L", (300, 300)), "JPEG2000", precinct_size=(64, 64), codeblock_size=(32, 32)),
    "BMP in runs": lambda: run_length_bmp(4, b"\4\7\0\0" * 4 + b"\0\1"),
    "ICO": lambda: saved(Image.new("RGBA", (256, 256)), "ICO"),
    "ICNS": lambda: saved(Image.new("RGBA", (1024, 1024)), "ICNS"),
    "PPM with a comment": lambda: b"P6 # by hand\n# twice\n1 1\n255\n" + bytes(3),
    "a long plain PPM": lambda: b"P3\n200 200\n255\n" + b"7 7 7\n" * 40_000,
    "WebP": lambda: saved(Image.new("RGB", (9, 9)), "WEBP"),
}  # fmt: skip


@pytest.mark.parametrize("name", WELCOME)
def test_what_programs_write_is_read(name: str) -> None:
    found = load_image(WELCOME[name]())
    assert image_size(WELCOME[name]()) == found.shape[1::-1]


def test_the_limit_of_scans_is_where_the_work_of_usual_ones_ends() -> None:
    """Programs write ten scans, of the largest image too."""
    assert LARGE**2 * 10 <= MOST_SCANNED_PIXELS < LARGE**2 * 20


TURNED = [
    ("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
    ("AVIF", {}), ("GIF", {}), ("BMP", {}), ("ICO", {}), ("JPEG2000", {}), ("PPM", {}), ("TGA", {}), ("MPO", {}),
]  # fmt: skip


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
@pytest.mark.parametrize(("form", "options"), TURNED)
def test_the_size_is_that_of_the_image_that_is_read(
    form: str, options: dict[str, Any], orientation: int | None
) -> None:
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {**options, "exif": exif}
    try:
        data = saved(Image.new("RGB", (40, 24)), form, **options)
    except (OSError, KeyError):
        pytest.skip(f"this build of Pillow does not write {form}")
    assert image_size(data) == load_image(data).shape[1::-1] == load_rgb(data).size


def test_a_png_that_is_turned_behind_its_pixels_has_the_size_that_it_is_turned_to() -> None:
    turned = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    data = saved(Image.new("RGB", (40, 24)), "PNG")
    late = data[:-12] + chunk(b"eXIf", turned) + data[-12:]
    text = data[:-12] + chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="6"') + data[-12:]
    assert image_size(late) == image_size(text) == (24, 40)
    assert load_image(late).shape == load_image(text).shape == (40, 24, 3)


def test_the_size_of_an_ordinary_file_is_told_without_decoding_it(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [
        saved(Image.new("RGB", (40, 24)), form) for form in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP")
    ]
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for data in files:
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        assert image_size(data) == image_size(url) == (40, 24)


def test_two_threads_and_two_models_decode_at_once(
    demo_model: AyaVision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits, while it decodes, for the other to decode as well."""
    together, convert = threading.Barrier(2, timeout=60), Image.Image.convert

    def meet(image: Image.Image, *mode: Any, **options: Any) -> Image.Image:
        together.wait()
        return convert(image, *mode, **options)

    grey = saved(Image.new("L", (30, 20), 7), "PNG")
    monkeypatch.setattr(Image.Image, "convert", meet)
    threads = [threading.Thread(target=load_image, args=(grey,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not together.broken
    with AyaVision.load() as other:
        handles = [model.submit("What?", images=[grey], max_tokens=1) for model in (demo_model, other)]
        assert all(handle.result(60).usage.tiles for handle in handles)
    assert not together.broken


def test_a_picture_of_scans_does_not_hold_up_another_model(demo_model: AyaVision) -> None:
    with pytest.raises(ImageError, match="scans"):
        demo_model.ask("What?", images=[scans(506)])
    assert math.isfinite(
        demo_model.ask("What?", images=[np.zeros((9, 9, 3), np.uint8)], max_tokens=1).timings.vision
    )
