"""Frames of image files: the later pages of a TIFF, the later frames of an animation.

Each page of a TIFF is made the first one of the same file, so that all checks of a file's first page are made of it.
Frames of animations are built upon each other: what they cost together is said, and refused beyond a limit.
"""

from __future__ import annotations

import struct

from PIL import Image

from ayaedge.errors import ImageError
from ayaedge.images.formats import TIFF, byte_order

MOST_FRAME_PIXELS = 500_000_000
"""Pixels of all frames up to the one that is wanted: a few seconds."""
_MOST_COMMENTS = 1000
"""Of a GIF; Pillow joins those before a frame one by one."""


def first_page(data: bytes, number: int, what: str) -> bytes:
    """A file of which this page is the first one: of a TIFF, where a pointer decides; others as they are."""
    if number == 1 or data[:4] not in TIFF:
        return data
    order, big = byte_order(data), 43 in data[2:4]
    word, head = (order + "Q", 8) if big else (order + "I", 4)
    place, seen = head, set[int]()
    try:
        for page in range(1, number + 1):
            (start,) = struct.unpack_from(word, data, place)
            if start == 0:
                raise ImageError(f"{what} has {page - 1} page{'s' * (page != 2)}, not {number}")
            if start in seen:
                raise ImageError(
                    f"{what} is damaged: its pages are linked in a circle behind page {page - 1}"
                )
            seen.add(start)
            (tags,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
            place = start + (8 + 20 * tags if big else 2 + 12 * tags)
    except (struct.error, OverflowError):
        raise ImageError(f"{what} is damaged: page {page} lies outside of the file") from None
    size = struct.calcsize(word)
    return data[:head] + struct.pack(word, start) + data[head + size :]


def go_to_frame(image: Image.Image, number: int, data: bytes, what: str) -> None:
    """Bring an animation that is not decoded yet to a frame; ImageError if there is none, or if it costs too much."""
    if number == 1 or data[:4] in TIFF:
        return
    pixels = image.width * image.height
    if number * pixels > MOST_FRAME_PIXELS:
        raise ImageError(
            f"frame {number} of {what} takes {number} frames of {pixels} pixels to decode, more than "
            f"{MOST_FRAME_PIXELS} together: save that frame as an image"
        )
    if image.format == "GIF" and data.count(b"!\xfe") > _MOST_COMMENTS:
        raise ImageError(f"{what} holds more than {_MOST_COMMENTS} comments: save the frame as an image")
    try:
        image.seek(number - 1)
    except EOFError:
        raise ImageError(f"{what} has fewer than {number} frames") from None
