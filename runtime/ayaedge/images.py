"""Pictures from wherever they are to RGB arrays.

One function serves paths, bytes, PIL images, arrays and data URLs. Nothing is fetched from a network.
"""

from __future__ import annotations

import base64
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ayaedge.errors import ImageError

ImageInput: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]"
)
"""A path, the bytes of a file, a PIL image, an array (H, W), (H, W, 3) or (H, W, 4) uint8, or a data URL."""

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded: the size at which Pillow raises for a decompression bomb, 2 x its warning."""
MAX_FILE_BYTES = 1 << 30
"""Largest file that is read: more than `MAX_PIXELS` take without any compression."""
_FORMATS = (
    "PNG", "JPEG", "MPO", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM", "AVIF", "HEIF", "JPEG2000", "ICO", "ICNS", "TGA",
    "PCX", "QOI", "SGI",
)  # fmt: skip
"""Of pictures; Pillow knows others too, one of which starts another program."""
_quiet = threading.Lock()
_SHOWN, _SHOWN_OF_PATH = 60, 400
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_ORIENTATION = 0x0112


def list_images(images: Iterable[Any] | ImageInput | None) -> list[Any]:
    """One picture, several or none, as a list."""
    if images is None:
        return []
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)):
        return [images]
    if isinstance(images, Iterable):
        return list(images)
    raise ImageError(f"pictures are given as a list, not as {type(images).__name__}")


def load_image(image: ImageInput) -> NDArray[np.uint8]:
    """A picture as RGB, (H, W, 3) uint8, upright.

    Files and PIL images are turned as their EXIF orientation says and converted as the reference does (alpha
    is dropped, palettes are expanded); arrays are taken as they are. Raises ImageError for anything that is not a
    whole picture of at least one pixel and at most `MAX_PIXELS`.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Image.Image):
        return _decode(lambda: image, "the PIL image")
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _open_bytes(bytes(image), f"the picture of {len(image)} bytes")
    if isinstance(image, str) and image[:5].lower() == "data:":
        return _open_bytes(_data_url(image), f"the data URL {_shorten(image)}")
    if isinstance(image, str) and _SCHEME.match(image):
        raise ImageError(f"{_shorten(image)} is a URL; ayaedge works offline: give the path of a file")
    if isinstance(image, str) and not image:
        raise ImageError("the path of a picture is empty")
    if isinstance(image, (str, os.PathLike)):
        try:
            return _open_path(Path(os.fsdecode(image)))
        except TypeError:  # of a PathLike that gives something else
            pass
    raise ImageError(
        f"a picture is a path, bytes, a PIL image, an array or a data URL, not {type(image).__name__}"
    )


def _open_path(path: Path) -> NDArray[np.uint8]:
    try:
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            raise ImageError(f"{path} is a directory, not a picture")
        if not stat.S_ISREG(kind.st_mode):  # a pipe or a device may never end
            raise ImageError(f"{path} is not a file")
        if kind.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{path} has {kind.st_size} bytes, more than a picture of {MAX_FILE_BYTES} may have"
            )
        data = path.read_bytes()
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"there is no picture at {_shorten(str(path), _SHOWN_OF_PATH)}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{_shorten(str(path), _SHOWN_OF_PATH)} cannot be read: {reason}") from error
    return _open_bytes(data, str(path))


def _open_bytes(data: bytes, what: str) -> NDArray[np.uint8]:
    if not data:
        raise ImageError(f"{what} is empty")
    return _decode(lambda: _open(io.BytesIO(data)), what)


def _open(stream: IO[bytes]) -> Image.Image:
    Image.preinit()
    try:
        return Image.open(stream, formats=_known_formats())
    except UnidentifiedImageError:
        Image.init()  # the rarer ones
        return Image.open(stream, formats=_known_formats())


def _known_formats() -> list[str]:
    return [name for name in _FORMATS if name in Image.OPEN]


def _decode(open_picture: Callable[[], Image.Image], what: str) -> NDArray[np.uint8]:
    # Pillow warns of what it can bear, and of large pictures, for which we have a limit of our own
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _decode_quietly(open_picture, what)


def _decode_quietly(open_picture: Callable[[], Image.Image], what: str) -> NDArray[np.uint8]:
    try:
        picture = open_picture()
        width, height = picture.size
        if width < 1 or height < 1:
            raise ImageError(f"{what} has no pixels ({width} x {height})")
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{what} has {width} x {height} pixels, more than the {MAX_PIXELS} that are decoded: make it smaller"
            )
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{what} is not a picture in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{what} is too large: {error}") from None
    except MemoryError:
        raise ImageError(f"{what} is too large to be decoded in the memory that is free") from None
    except Exception as error:  # Pillow's decoders raise whatever comes
        raise ImageError(f"{what} is damaged or incomplete: {error}") from error


def _from_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shape = array.shape
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(
            "an array must be uint8 of shape (H, W), (H, W, 3) or (H, W, 4), "
            f"not {array.dtype} of shape {shape}"
        )
    if 0 in shape:
        raise ImageError(f"an array of shape {shape} has no pixels")
    if array.ndim == 2:
        array = array[:, :, None]
    return np.ascontiguousarray(np.broadcast_to(array[:, :, :3], (*shape[:2], 3)))


def _data_url(url: str) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise ImageError(f"the data URL {_shorten(url)} is not of the form data:image/...;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:  # binascii.Error, or characters that are not ASCII
        raise ImageError(f"the data URL {_shorten(url)} is not valid base64: {error}") from None


def _shorten(text: str, longest: int = _SHOWN) -> str:
    return text if len(text) <= longest else text[:longest] + "..."
