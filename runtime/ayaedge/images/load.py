"""Images from wherever they are to RGB arrays.

One function serves paths, URLs of files, bytes, open files, PIL images, arrays and data URLs. Nothing is fetched from a
network, and nothing is changed that other parts of the process see: no filter of warnings, no limit of Pillow's.
"""

from __future__ import annotations

import base64
import inspect
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ayaedge.errors import ImageError
from ayaedge.images.formats import foreign_kind, open_image, orientation_of
from ayaedge.images.pixels import SIDEWAYS, array_on_white, to_rgb, upright
from ayaedge.images.structure import check_parts, check_work


class BinaryFile(Protocol):
    """An open file; BytesIO is one too."""

    def read(self, size: int = ..., /) -> bytes:
        """The next bytes, `size` at most; none at the end."""
        ...


ImageInput: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | NDArray[np.uint8]
)
"""A path, `file://` or data URL, the bytes of a file, a file opened for reading bytes, a PIL image, or an array (H, W),
(H, W, 3) or (H, W, 4) uint8."""

MAX_PIXELS = 178_956_970
"""Largest image that is decoded: the size at which Pillow raises for a decompression bomb, 2 x its warning."""
MAX_FILE_BYTES = 1 << 30
"""Largest file that is read: more than `MAX_PIXELS` take without any compression."""
_SIZED = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "AVIF")
"""Formats of files whose images have the size that is read before they are decoded."""
_MAY_TURN = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Marks of a PNG that may be turned; what they say may stand behind the pixels."""
_SHOWN, _SHOWN_OF_PATH = 60, 400
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DRIVE = re.compile(r"/?([A-Za-z])[:|](/.*)", re.DOTALL)
_BASE64_OF_IMAGE = re.compile(r"(?:iVBORw0KGgo|/9j/4|R0lGOD|UklGR)[\w+/-]{40}")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ORIENTATION = 0x0112


def list_images(images: Iterable[Any] | ImageInput | None) -> list[Any]:
    """One image, several or none, as a list."""
    if images is None:
        return []
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)):
        return [images]
    if _is_open_file(images):
        return [images]
    if isinstance(images, Iterable):
        return list(images)
    raise ImageError(f"images are given as a list, not as {type(images).__name__}")


def take_image(image: Any) -> Any:
    """The same image, so that nothing that its owner does from now on changes it.

    Arrays are copied, PIL images loaded and converted, open files and buffers read; ImageError if that fails. Files
    that are named, and bytes, are left to be read later.
    """
    if isinstance(image, np.ndarray):
        return np.array(_from_array(image))
    if isinstance(image, Image.Image):
        return load_image(image)
    if isinstance(image, (bytearray, memoryview)):
        return _bytes_of(image)
    if isinstance(image, (str, os.PathLike)):
        return image if _is_url(image) else _take_path(image)
    return _read_open_file(image) if _is_open_file(image) else image


def load_image(image: ImageInput) -> NDArray[np.uint8]:
    """An image as RGB, (H, W, 3) uint8, as a viewer shows it.

    Files and PIL images are turned upright by their EXIF orientation, values of 16 bits are divided by 257, palettes
    and other modes are expanded. An image of which any pixel is transparent is laid on white; the reference drops
    alpha and shows what is hidden: for that give `image.convert("RGB")`, or an array of three channels. An open file
    is read from its beginning, and left at the place where it was; one that cannot be rewound is read from there on.
    Raises ImageError for anything that is not a whole image of at least one pixel and at most `MAX_PIXELS`.
    """
    return _from_array(image) if isinstance(image, np.ndarray) else np.asarray(load_rgb(image))


def load_rgb(image: ImageInput) -> Image.Image:
    """What `load_image` gives, as a PIL image of mode RGB: without a second copy of the pixels."""
    if isinstance(image, np.ndarray):
        return Image.fromarray(_from_array(image))
    if isinstance(image, Image.Image):
        return _from_pil(image)
    data, what = _file_of(image)
    with _faults(what):
        opened, orientation = _open(data, what)
        opened.load()  # some EXIF stands behind the pixels
        rgb = to_rgb(opened, what)
        return upright(rgb, orientation_of(opened) if orientation is None else orientation)


def image_size(image: ImageInput, *, most_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of what `load_image` gives, without decoding it if its head says them; errors as there.

    An image of more than `most_pixels` is refused before any is decoded.
    """
    if isinstance(image, (np.ndarray, Image.Image)):
        return load_rgb(image).size
    data, what = _file_of(image)
    with _faults(what):
        opened, orientation = _open(data, what, most_pixels)
        if opened.format not in _SIZED or (
            opened.format == "PNG" and any(mark in data for mark in _MAY_TURN)
        ):
            return load_rgb(data).size
        turned = (orientation_of(opened) if orientation is None else orientation) in SIDEWAYS
        return (opened.height, opened.width) if turned else (opened.width, opened.height)


def _open(data: bytes, what: str, most_pixels: int = MAX_PIXELS) -> tuple[Image.Image, int | None]:
    """An image that is not decoded yet and may be, and its orientation if the file's head says it."""
    if not data:
        raise ImageError(f"{what} is empty")
    check_parts(data, what)
    opened, orientation = open_image(data, what)
    _check_size(opened, what, most_pixels)
    check_work(data, opened, what)
    return opened, orientation


def read_file(image: str | os.PathLike[str]) -> bytes:
    """The bytes of an image that is named by a path or a URL; ImageError if there are none."""
    return _file_of(image)[0]


def file_url_path(url: str, *, windows: bool = os.name == "nt") -> str | None:
    """The path that a `file:` URL names, or None if it is relative or, except on Windows, of another computer.

    Percent-encoded bytes are those of the file's name. `?` and `#` are taken as parts of the name: images in files
    have neither queries nor fragments, and those who put a path behind `file://` seldom encode them.
    """
    rest = url[len("file:") :]
    if windows:
        rest = rest.replace("\\", "/")
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    host, path = (unquote(part, errors="surrogateescape") for part in (host, path))
    if windows and (drive := _DRIVE.fullmatch(host + path)):
        return f"{drive[1]}:{drive[2]}"
    if not path.startswith("/"):
        return None
    if host.lower() in ("", "localhost"):
        return path
    return f"//{host}{path}" if windows else None


def _file_of(image: Any) -> tuple[bytes, str]:
    """The bytes of an image's file, and what to call it."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = _bytes_of(image)
        return data, f"the image of {len(data)} bytes"
    if isinstance(image, str) and _is_url(image):
        return _of_url(image.strip())
    if isinstance(image, str) and not image:
        raise ImageError("the path of an image is empty")
    if isinstance(image, TakenPath):
        return _read_path(image.path, image.given), image.given
    if isinstance(image, (str, os.PathLike)):
        try:
            path = os.fsdecode(image)
        except TypeError:  # of a PathLike that gives something else
            raise ImageError(_no_image(image)) from None
        return _read_path(Path(path), path), path
    if _is_open_file(image):
        return _read_open_file(image), "the open file"
    raise ImageError(_no_image(image))


def _no_image(image: object) -> str:
    return (
        "an image is a path, bytes, an open file, a PIL image, an array, a data URL or a file URL, "
        f"not {type(image).__name__}"
    )


def _is_url(text: object) -> bool:
    if not isinstance(text, str):
        return False
    start = text.lstrip()
    return start[:5].lower() in ("data:", "file:") or _SCHEME.match(start) is not None


def _of_url(url: str) -> tuple[bytes, str]:
    scheme = url[:5].lower()
    if scheme == "data:":
        return _data_url(url), f"the data URL {_shorten(url)}"
    if scheme != "file:":
        raise ImageError(f"{_shorten(url)} is a URL; ayaedge works offline: give the path of a file")
    path = file_url_path(url)
    if path is None:
        raise ImageError(f"{_shorten(url)} is not of the form file:///path/of/an/image")
    return _read_path(Path(path), path), path


@dataclass(frozen=True)
class TakenPath:
    """A path that leads to the same file whatever becomes the current directory."""

    given: str
    """What it is called."""
    path: Path


def _take_path(path: str | os.PathLike[str]) -> str | os.PathLike[str] | TakenPath:
    try:
        given = os.fsdecode(path)
        return TakenPath(given, Path(given).absolute()) if given else path
    except (TypeError, OSError):  # said when it is read
        return path


def _bytes_of(buffer: bytes | bytearray | memoryview) -> bytes:
    try:
        return bytes(buffer)
    except ValueError as error:  # a view that was released
        raise ImageError(f"the image's bytes cannot be read: {error}") from None


def _is_open_file(image: object) -> bool:
    return callable(getattr(image, "read", None))


def _read_open_file(file: Any) -> bytes:
    """The whole file, whose position is not changed if it can be rewound."""
    name = getattr(file, "name", None)
    what = f"the open file {_shorten(name)}" if isinstance(name, str) else "the open file"
    try:
        place = file.tell() if _can_be_rewound(file) else None
        if place is not None:
            file.seek(0)
        try:
            return _read_all(file, what)
        finally:
            if place is not None:
                file.seek(place)
    except ImageError:
        raise
    except Exception as error:  # of whatever stands behind it
        raise ImageError(f"{what} cannot be read: {error}") from error


def _can_be_rewound(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else hasattr(file, "seek")


def _read_all(file: Any, what: str) -> bytes:
    parts, size = [], 0
    while part := file.read(MAX_FILE_BYTES + 1 - size):
        if inspect.iscoroutine(part):
            part.close()
            raise ImageError(f"{what} is read by waiting: give the bytes, await file.read()")
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise ImageError(f"{what} gives {type(part).__name__}, not bytes: open it with mode 'rb'")
        parts.append(bytes(part))
        size += len(parts[-1])
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{what} has more than the {MAX_FILE_BYTES} bytes that an image may have")
    return b"".join(parts)


def _read_path(path: Path, name: str) -> bytes:
    shown = _shorten(name, _SHOWN_OF_PATH)
    if _BASE64_OF_IMAGE.match(name):
        shown += " (if this is base64, write data:image/png;base64, before it)"
    try:
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            raise ImageError(f"{shown} is a directory, not an image")
        if not stat.S_ISREG(kind.st_mode):  # a pipe or a device may never end
            raise ImageError(f"{shown} is not a file")
        if kind.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{shown} has {kind.st_size} bytes, more than an image of {MAX_FILE_BYTES} may have"
            )
        return path.read_bytes()
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"there is no image at {shown}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{shown} cannot be read: {reason}") from error


def _data_url(url: str) -> bytes:
    """Read as browsers do: blanks and missing padding are no fault, and the alphabet for URLs is known too."""
    header, comma, payload = url.partition(",")
    try:
        data = unquote_to_bytes(payload.encode("ascii")) if "%" in payload else payload.encode("ascii")
        if not comma or header.rpartition(";")[2].strip().lower() != "base64":
            kind = foreign_kind(data)
            raise ImageError(
                f"the data URL {_shorten(url)} is " + (kind or "not of the form data:image/...;base64,...")
            )
        data = data.translate(_URL_SAFE, b" \t\r\n\f\v").rstrip(b"=")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ImageError:
        raise
    except ValueError as error:  # binascii.Error, or characters that are not ASCII
        raise ImageError(f"the data URL {_shorten(url)} is not valid base64: {error}") from None


def _from_pil(image: Image.Image) -> Image.Image:
    """Always new pixels: the image may be closed or changed afterwards."""
    what = "the PIL image"
    with _faults(what):
        _check_size(image, what)
        image.load()
        rgb = upright(to_rgb(image, what), _orientation_of_pil(image))
        return rgb.copy() if rgb is image else rgb


def _orientation_of_pil(image: Image.Image) -> int:
    with suppress(Exception):  # whatever Pillow has against other tags
        found = image.getexif().get(_ORIENTATION, 1)  # its owner may have changed it
        return found if isinstance(found, int) else 1
    return orientation_of(image)


def _from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shape = array.shape
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(
            "an array must be uint8, from 0 to 255, of shape (H, W), (H, W, 3) or (H, W, 4), "
            f"not {array.dtype} of shape {shape}"
        )
    if 0 in shape:
        raise ImageError(f"an array of shape {shape} has no pixels")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] == 4:
        array = array_on_white(array)
    return np.ascontiguousarray(np.broadcast_to(array, (*shape[:2], 3)))


def _check_size(image: Image.Image, what: str, most: int = MAX_PIXELS) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"{what} has no pixels ({width} x {height})")
    if width * height > most:
        raise ImageError(
            f"{what} has {width} x {height} pixels, more than the {most} that are decoded: make it smaller"
        )


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """Whatever is raised while an image is decoded, as ImageError."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{what} is not an image in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{what} is too large: {error}") from None
    except MemoryError:
        raise ImageError(f"{what} is too large to be decoded in the memory that is free") from None
    except Warning as warning:
        raise ImageError(
            f"{what} is unusual, and this program makes errors of warnings: {warning}"
        ) from warning
    except Exception as error:  # Pillow's decoders raise whatever comes
        raise ImageError(f"{what} is damaged or incomplete: {error}") from error


def _shorten(text: str, longest: int = _SHOWN) -> str:
    return text if len(text) <= longest else text[:longest] + "..."
