"""What a file costs to decode beyond its pixels: files that ask for too much are refused before they are decoded.

A few kilobytes can ask for minutes: a JPEG of hundreds of scans, a TIFF of a million strips, a drawing of comments
alone. Each limit is far above what programs write; within them no file takes much longer than the largest plain one
(`ayaedge.images.load.MAX_PIXELS`). Nothing is decoded here, and every walk through a file is bounded itself.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator

from PIL import Image

from ayaedge.errors import ImageError
from ayaedge.images.formats import PIXEL_TAGS, TIFF, byte_order, tiff_entries

MOST_SCANS = 100
"""Of a JPEG; programs write about ten. libtiff has the same limit."""
MOST_SCANNED_PIXELS = 2_500_000_000
"""Pixels times scans: each scan goes over the whole image."""
_MOST_SEGMENTS = 10_000
"""Of a JPEG; each may have 64 kB."""
_MOST_RESOURCES = 100_000
"""Photoshop's, in a JPEG, which Pillow reads in Python; it writes a few dozen."""
_MOST_CHUNKS = 200_000
"""Of a PNG, whose pixels usually come in chunks of 8 kB."""
_MOST_PROFILES = 10
"""Of a PNG, each unpacked; one is allowed."""
_MOST_EXTENSIONS, _MOST_GIF_BLOCKS = 1000, 100_000
"""Before the first frame of a GIF."""
_MOST_TAGS, _MOST_VALUES = 4096, 200_000
"""Of a TIFF, and of one of its tags."""
_MOST_STRIPS = 100_000
"""Of a TIFF, or tiles."""
_MOST_TILES, _MOST_PRECINCTS = 10_000, 100_000
"""Of a JPEG 2000."""
_MOST_HEADER = 1 << 16
"""Bytes of a PPM's header with its comments."""
_MOST_ICON = 1024
"""Pixels of a side of an image inside an icon."""
_MOST_ICONS = 10_000
_MOST_PIXELS = {"JPEG2000": 64_000_000, "WEBP": 100_000_000, "RLE": 8_000_000}
"""Of formats that take several times as long for a pixel, or as much memory."""
_MOST_BYTES = {"RLE": 2_000_000, "QOI": 2_000_000, "plain": 64_000_000}
"""Of formats whose decoders in Pillow are written in Python."""
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Of a JPEG, between scans: no escaped byte, fill byte or restart."""
_SOS, _EOI = 0xDA, 0xD9
_PPM_HEADER = re.compile(rb"P[1-6yf]\s(?:\s|#[^\r\n]*[\r\n])*(?:\d+(?:\s|#[^\r\n]*[\r\n])+){2}[-.\d]*")
_PNG = b"\x89PNG\r\n\x1a\n"
_JP2, _J2K = b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"
_JPEG_IN_TIFF = (6, 7, "tiff_jpeg", "jpeg")


def check_parts(data: bytes, what: str) -> None:
    """Raise ImageError for a file of too many parts; called before Pillow opens it, which reads them all."""
    try:
        if fault := _fault_in_parts(data):
            raise ImageError(f"{what} {fault}: save it anew with another program")
    except (struct.error, IndexError, OverflowError):  # it ends too early, which Pillow says better
        pass


def check_work(data: bytes, image: Image.Image, what: str) -> None:
    """Raise ImageError for an opened image, not decoded yet, that takes too much work for its pixels."""
    if fault := _fault_in_work(data, image):
        raise ImageError(f"{what} {fault}: make it smaller, or save it as PNG")


def _fault_in_parts(data: bytes) -> str | None:
    if data[:3] == b"\xff\xd8\xff":
        if data.count(b"8BIM") > _MOST_RESOURCES:
            return f"holds more than {_MOST_RESOURCES} of Photoshop's notes"
        scans = _count_scans(data)
        return f"has more than {MOST_SCANS} scans or {_MOST_SEGMENTS} segments" if scans is None else None
    if data[:8] == _PNG:
        return _png_fault(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _gif_fault(data)
    if data[:4] in TIFF:
        return _tiff_fault(data)
    if data[:8] == _JP2 or data[:4] == _J2K:
        return _jpeg_2000_fault(data)
    if data[:4] == b"icns" or data[:4] == b"\0\0\1\0":
        return _icon_fault(data)
    if (
        re.match(rb"P[1-6yf]\s", data)
        and not _PPM_HEADER.match(data[:_MOST_HEADER])
        and len(data) > _MOST_HEADER
    ):
        return f"has a header of more than {_MOST_HEADER} bytes"
    return None


def _count_scans(data: bytes) -> int | None:
    """Scans of the first image of a JPEG; None if there are too many, or too many segments."""
    scans, place = 0, 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, place)
        if found is None or data[found.start() + 1] == _EOI:
            return scans
        place = found.end()
        if data[place - 1] > 0x01 and data[place - 1] != 0xD8:
            scans += data[place - 1] == _SOS
            place += int.from_bytes(data[place : place + 2], "big")
        if scans > MOST_SCANS:
            return None
    return None


def _png_fault(data: bytes) -> str | None:
    place, profiles = 8, 0
    for _ in range(_MOST_CHUNKS):
        if place + 8 > len(data):
            return None
        length, kind = struct.unpack_from(">I4s", data, place)
        place += 12 + length
        profiles += kind == b"iCCP"
        if profiles > _MOST_PROFILES:
            return f"has more than {_MOST_PROFILES} colour profiles"
        if kind == b"IEND":
            return None
    return f"has more than {_MOST_CHUNKS} chunks"


def _gif_fault(data: bytes) -> str | None:
    """Pillow joins comments one by one, which takes the square of their number."""
    place, extensions = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0), 0
    for _ in range(_MOST_GIF_BLOCKS):
        mark = data[place : place + 1]
        if mark in (b"", b",", b";"):
            return None
        if mark != b"!":
            place += 1
            continue
        extensions += 1
        place += 2
        if extensions > _MOST_EXTENSIONS:
            return f"has more than {_MOST_EXTENSIONS} comments"
        for _ in range(_MOST_GIF_BLOCKS):
            size = data[place]
            place += 1 + size
            if not size:
                break
        else:
            return f"has a comment of more than {_MOST_GIF_BLOCKS} blocks"
    return f"has more than {_MOST_GIF_BLOCKS} bytes between its parts"


def _tiff_fault(data: bytes) -> str | None:
    order, seen = byte_order(data), set()
    for number, (place, tag, big) in enumerate(tiff_entries(data)):
        if number >= _MOST_TAGS:
            return f"has more than {_MOST_TAGS} tags"
        if tag not in PIXEL_TAGS:
            continue
        if tag in seen:
            return f"has tag {tag} twice"
        seen.add(tag)
        (count,) = struct.unpack_from(order + ("Q" if big else "I"), data, place + 4)
        if count > _MOST_VALUES:
            return f"has {count} values for tag {tag}"
    return None


def _icon_fault(data: bytes) -> str | None:
    """The images in an ICO or ICNS file are small ones, whatever they say themselves."""
    for number, part in enumerate(_icons(data)):
        if number >= _MOST_ICONS:
            return f"holds more than {_MOST_ICONS} images"
        width = height = 0
        if part[:8] == _PNG:
            width, height = struct.unpack_from(">II", part, 16)
        elif part[:8] == _JP2 or part[:4] == _J2K:
            width, height, _, _ = _jpeg_2000_sizes(part)
        elif data[:1] == b"\0" and part[:4] == b"\x28\0\0\0":
            width, height = struct.unpack_from("<ii", part, 4)  # an icon's height counts its mask
        if max(width, abs(height) // 2) > _MOST_ICON:
            return f"holds an image of {width} x {abs(height)} pixels, no icon"
        if part[:1] != b"\x28" and (fault := _fault_in_parts(part)):
            return fault
    return None


def _icons(data: bytes) -> Iterator[bytes]:
    if data[:4] == b"icns":
        place = 8
        while place + 8 <= len(data):
            (size,) = struct.unpack_from(">I", data, place + 4)
            yield data[place + 8 : place + size]
            place += max(size, 8)
        return
    (count,) = struct.unpack_from("<H", data, 4)
    entries = {struct.unpack_from("<II", data, 6 + 16 * number + 8) for number in range(count)}
    for size, place in sorted(entries):
        yield data[place : place + size]


def _codestream(data: bytes) -> int:
    """Where the codestream of a JPEG 2000 begins; past the end if there is none."""
    place = 0
    for _ in range(_MOST_SEGMENTS):
        if data[place : place + 4] == _J2K:
            return place
        size, kind = struct.unpack_from(">I4s", data, place)
        head = 16 if size == 1 else 8
        if kind == b"jp2c":
            return place + head
        size = struct.unpack_from(">Q", data, place + 8)[0] if size == 1 else size
        if size < head:
            break
        place += size
    return len(data)


def _jpeg_2000_sizes(data: bytes) -> tuple[int, int, int, int]:
    """Width and height of the image and of its tiles."""
    right, low, left, top, width, height = struct.unpack_from(">6I", data, _codestream(data) + 8)
    return right - left, low - top, width, height


def _jpeg_2000_fault(data: bytes) -> str | None:
    width, height, columns, rows = _jpeg_2000_sizes(data)
    tiles = math.ceil(width / max(columns, 1)) * math.ceil(height / max(rows, 1))
    if tiles > _MOST_TILES:
        return f"has {tiles} tiles"
    for styles, levels, sizes in _coding_styles(data):
        if not styles & 1:
            continue
        count = 0
        for level, size in enumerate(sizes[: levels + 1]):
            scale = 1 << (levels - level)
            count += math.ceil(width / scale / (1 << (size & 15))) * math.ceil(
                height / scale / (1 << (size >> 4))
            )
        if count > _MOST_PRECINCTS:
            return f"has {count} precincts"
    return None


def _coding_styles(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Of all COD and COC markers: style, number of decompositions, and sizes of precincts."""
    place, end = _codestream(data) + 2, 0
    wide = 2 if struct.unpack_from(">H", data, _codestream(data) + 40)[0] > 256 else 1
    for _ in range(2 * _MOST_TILES):
        marker, length = struct.unpack_from(">HH", data, place)
        body = data[place + 4 : place + 2 + length]
        if marker == 0xFF90:  # a part of a tile begins
            end = place + (struct.unpack_from(">I", body, 2)[0] or len(data))
        elif marker == 0xFF52:
            yield body[0], body[5], body[10:]
        elif marker == 0xFF53:
            yield body[wide], body[wide + 1], body[wide + 6 :]
        place += 2 + length
        if data[place : place + 2] == b"\xff\x93":  # its data
            place = end
        if place >= len(data):
            return


def _fault_in_work(data: bytes, image: Image.Image) -> str | None:
    form, pixels = str(image.format), image.width * image.height
    if form == "JPEG":
        return _scans_fault(_count_scans(data) or 0, pixels)
    if form == "TIFF":
        return _strips_fault(data, image)
    if form in ("BMP", "DIB") and image.info.get("compression") in (1, 2):
        form = "RLE"
    if form == "PPM" and data[1:2] in (b"1", b"2", b"3"):
        form = "plain"
    if pixels > _MOST_PIXELS.get(form, pixels):
        return f"has {pixels} pixels, more than the {_MOST_PIXELS[form]} that are decoded of its format"
    if len(data) > _MOST_BYTES.get(form, len(data)):
        return f"has {len(data)} bytes, more than the {_MOST_BYTES[form]} that are decoded of its format"
    return None


def _scans_fault(scans: int, pixels: int) -> str | None:
    if scans * pixels <= MOST_SCANNED_PIXELS:
        return None
    return f"has {scans} scans of {pixels} pixels, too many for its size"


def _strips_fault(data: bytes, image: Image.Image) -> str | None:
    tags = getattr(image, "tag_v2", {})

    def value(tag: int, otherwise: int) -> int:
        found = tags.get(tag, otherwise)
        return max(found, 1) if isinstance(found, int) else otherwise

    planes = value(277, 1) if value(284, 1) == 2 else 1
    if 322 in tags or 323 in tags:
        strips = math.ceil(image.width / value(322, 1)) * math.ceil(image.height / value(323, 1)) * planes
    else:
        strips = math.ceil(image.height / value(278, image.height)) * planes
    if (strips := max(strips, len(getattr(image, "tile", ())))) > _MOST_STRIPS:
        return f"is cut into {strips} strips or tiles"
    if tags.get(259) not in _JPEG_IN_TIFF:
        return None
    scans = math.ceil(data.count(b"\xff\xda") / strips)
    return f"has {scans} scans" if scans > MOST_SCANS else _scans_fault(scans, image.width * image.height)
