"""The bytes of an image file to a Pillow image that warns of nothing, and how it is to be turned.

Pillow warns of faulty or unusual EXIF and TIFF tags, and Python knows warnings of a whole process only: so whatever
such warnings are about is read here, or left away, before Pillow sees the file.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from ayaedge.errors import ImageError

_FORMATS = (
    "PNG", "JPEG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "ICO", "ICNS", "PCX", "QOI",
    "SGI", "TGA",
)  # fmt: skip
"""Of images; Pillow knows others too, one of which starts another program. TGA has no mark of its own: it is last."""
_WIDTH, _ORIENTATION = 0x0100, 0x0112
_EXIF = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_INTEGERS = {1: "B", 3: "H", 4: "I"}
"""Types of a tag's value, and their forms for `struct`."""
PIXEL_TAGS = frozenset(
    {
        254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332,
        334, 338, 339, 347, 512, 513, 514, 515, 519, 520, 521, 529, 530, 531, 532,
    }
)  # fmt: skip
"""Tags of a TIFF without which it could not be decoded."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def open_image(data: bytes, what: str) -> tuple[Image.Image, int | None]:
    """An image that is not decoded yet, its first frame, and its orientation if the file's head says it.

    Raises ImageError for a file that is no image, by its kind where its first bytes tell, and whatever Pillow's
    formats raise.
    """
    if _is_heic(data):
        return _open_heic(data, what), None
    if data[:3] == b"\xff\xd8\xff":
        data, exif = _without_exif(data)
        return _open(data, what), exif_orientation(exif)
    if data[:4] in TIFF:
        if not any(tag == _WIDTH for _, tag, _ in tiff_entries(data)):
            raise ImageError(f"{what} is {foreign_kind(data)}")
        return _open(_pixels_only(data), what), exif_orientation(data)
    return _open(data, what), None


def orientation_of(image: Image.Image) -> int:
    """The orientation that a decoded image's EXIF says, or else its XMP, or else 1."""
    exif, profile = image.info.get("exif"), image.info.get("Raw profile type exif")
    if exif is None and isinstance(profile, str):
        exif = _bytes_of_profile(profile)
    found = exif_orientation(exif) if isinstance(exif, bytes) else None
    return _xmp_orientation(image) if found is None else found


def exif_orientation(data: bytes) -> int | None:
    """The orientation in an EXIF block or a TIFF file, if there is one; every other tag is passed over."""
    data = data.removeprefix(_EXIF)
    for place, tag, big in tiff_entries(data):
        if tag == _ORIENTATION:
            order = byte_order(data)
            form = _INTEGERS.get(struct.unpack_from(f"{order}H", data, place + 2)[0])
            return (
                int(struct.unpack_from(order + form, data, place + (12 if big else 8))[0]) if form else None
            )
    return None


def _xmp_orientation(image: Image.Image) -> int:
    xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
    match = _XMP_ORIENTATION.search(xmp.encode("utf-8", "replace") if isinstance(xmp, str) else bytes(xmp))
    return int(match[1]) if match else 1


def _bytes_of_profile(profile: str) -> bytes:
    """EXIF as ImageMagick writes it into text: a name, a length, then hexadecimal digits."""
    try:
        return bytes.fromhex("".join(profile.split("\n")[3:]))
    except ValueError:
        return b""


def byte_order(data: bytes) -> str:
    """`struct`'s mark of a TIFF's byte order."""
    return ">" if data[:2] == b"MM" else "<"


def tiff_entries(data: bytes) -> Iterator[tuple[int, int, bool]]:
    """The tags of the first directory of a TIFF: where each begins, its number, and whether the file is a BigTIFF.

    https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf, section 2
    """
    if data[:4] not in TIFF:
        return
    order, big = byte_order(data), 43 in data[2:4]
    try:
        (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, first)
        start, size = first + (8 if big else 2), 20 if big else 12
        for place in range(start, min(start + count * size, len(data) - size + 1), size):
            yield place, struct.unpack_from(f"{order}H", data, place)[0], big
    except (struct.error, OverflowError):
        return


def _pixels_only(data: bytes) -> bytes:
    """A TIFF in which the tags that say nothing of its pixels have a type that no reader knows."""
    changed = bytearray(data)
    for place, tag, _ in tiff_entries(data):
        if tag not in PIXEL_TAGS:
            changed[place + 2 : place + 4] = b"\0\0"
    return bytes(changed) + bytes(8)  # where a file ends with its directory, as if another one were not there


def _without_exif(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG without its EXIF and its list of further images, and the EXIF."""
    kept, exif, place = [data[:2]], b"", 2
    while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if not 0xC0 <= marker <= 0xFE or 0xD0 <= marker <= 0xDA:  # fill bytes, or the pixels begin
            break
        segment = data[place : place + 2 + length]
        place += 2 + length
        if marker == 0xE1 and segment[4:10] == _EXIF:
            exif = exif or segment[4:]
        elif not (marker == 0xE2 and segment[4:8] == b"MPF\0"):
            kept.append(segment)
    return b"".join([*kept, data[place:]]), exif


def _open(data: bytes, what: str) -> Image.Image:
    """As `Image.open` does, which would warn of large images."""
    for load_plugins in (Image.preinit, Image.init):  # the second loads the rarer ones
        load_plugins()
        for name in _FORMATS:
            try:
                factory, accept = Image.OPEN[name]
                if accept is None or accept(data[:16]) is True:
                    return factory(io.BytesIO(data), "")
            except (KeyError, SyntaxError, IndexError, TypeError, struct.error):
                continue
    if kind := foreign_kind(data):
        raise ImageError(f"{what} is {kind}")
    raise UnidentifiedImageError


def _is_heic(data: bytes) -> bool:
    brands = data[8:64]
    return data[4:8] == b"ftyp" and brands[:4] in _HEIC_BRANDS and b"avif" not in brands


def _open_heic(data: bytes, what: str) -> Image.Image:
    """By pillow-heif, which turns images itself; it is not made known to Pillow, which belongs to the program."""
    try:
        opener = importlib.import_module("pillow_heif").HeifImageFile
    except ImportError:
        raise ImageError(
            f'{what} is a HEIC image, which pillow-heif reads: pip install "ayaedge[heif]"; or convert it to JPEG'
        ) from None
    image: Image.Image = opener(io.BytesIO(data), "")
    return image


_KINDS: tuple[tuple[bytes, str], ...] = (
    (rb"[\s\S]{0,1024}?%PDF-", "a PDF: make images of its pages first, for example with pdftoppm"),
    (rb"[\s\S]{0,4096}?<svg[\s>]", "an SVG drawing: render it to PNG first, in a browser or with rsvg-convert"),
    (rb"\s*<(?:!doctype )?html", "a web page, not the image that it may show"),
    (rb"\x1f\x8b", "compressed by gzip, as SVG drawings with the suffix .svgz are: unpack it, and render a drawing"),
    (rb"PK\x03\x04", "a ZIP archive, as office documents are: give the images in it, or export pages as images"),
    (rb"\xd0\xcf\x11\xe0", "an office document: export its pages as images first"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript: render it to PNG first"),
    (rb"8BPS", "a Photoshop document: export it as PNG or JPEG first"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image, which Pillow does not read: convert it to PNG or JPEG first"),
    (
        rb"....ftyp(?:avis|.{0,48}?avif)",
        "an AVIF image that is damaged, or that this Pillow does not read: pip install -U pillow (11.3 or newer)",
    ),
    (rb"....ftypcrx ", "a camera's raw image: develop it to JPEG first"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", "a video: give single frames of it"),
    (
        rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
        "a TIFF that is damaged, or of a kind that Pillow does not read: save it as PNG with 8 or 16 bits",
    ),
)  # fmt: skip
"""What files that are no images to us begin with, and what to do with them."""


def foreign_kind(data: bytes) -> str | None:
    """What a file is that is not read, and what to do, if its first bytes tell."""
    head = data[:8192]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "ignore").encode()
    head = head.removeprefix(b"\xef\xbb\xbf")
    return next((kind for mark, kind in _KINDS if re.match(mark, head, re.IGNORECASE | re.DOTALL)), None)
