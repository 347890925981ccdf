"""Images from wherever they are to RGB arrays.

One function serves paths, URLs of files, bytes, open files, PIL images, arrays and data URLs. Nothing is fetched from a
network, and nothing is changed that other parts of the process see: no filter of warnings, no limit of Pillow's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ayaedge.errors import ImageError
from ayaedge.images.formats import open_image, orientation_of
from ayaedge.images.frames import first_page, go_to_frame
from ayaedge.images.pages import Page, given_pages, single_page
from ayaedge.images.pdf import Fit, PdfReader, is_pdf, readable_size
from ayaedge.images.pixels import SIDEWAYS, array_on_white, to_rgb, upright
from ayaedge.images.sources import (
    BinaryFile,
    TakenPath,
    bytes_of,
    file_of,
    is_open_file,
    is_url,
    read_open_file,
    take_path,
)
from ayaedge.images.structure import check_parts, check_work

ImageInput: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryFile
    | Image.Image
    | NDArray[np.uint8]
    | Page
)
"""A path, `file://` or data URL, the bytes of a file, a file opened for reading bytes, a PIL image, an array (H, W),
(H, W, 3) or (H, W, 4) uint8, or a `Page` of a file. `#page=3` behind a path or URL names a page too."""

MAX_PIXELS = 178_956_970
"""Largest image that is decoded: the size at which Pillow raises for a decompression bomb, 2 x its warning."""
_SIZED = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP", "AVIF")
"""Formats of files whose images have the size that is read before they are decoded."""
_MAY_TURN = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Marks of a PNG that may be turned; what they say may stand behind the pixels."""
_ORIENTATION = 0x0112


def list_images(images: Iterable[Any] | ImageInput | None) -> list[Any]:
    """One image, several or none, as a list; a name that selects pages stands for each of them."""
    if images is None:
        return []
    single = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, Page, TakenPath)
    if isinstance(images, single) or is_open_file(images):
        return given_pages(images)
    if isinstance(images, Iterable):
        return [page for image in images for page in given_pages(image)]
    raise ImageError(f"images are given as a list, not as {type(images).__name__}")


def take_image(image: Any) -> Any:
    """The same image, so that nothing that its owner does from now on changes it.

    Arrays are copied, PIL images loaded and converted, open files and buffers read; ImageError if that fails. Files
    that are named, and bytes, are left to be read later.
    """
    image = single_page(image)
    if isinstance(image, Page):
        return Page(_take_file(image.file), image.number)
    if isinstance(image, np.ndarray):
        return np.array(_from_array(image))
    return load_image(image) if isinstance(image, Image.Image) else _take_file(image)


def _take_file(file: Any) -> Any:
    if isinstance(file, (bytearray, memoryview)):
        return bytes_of(file)
    if isinstance(file, (str, os.PathLike)):
        return file if is_url(file) else take_path(file)
    return read_open_file(file) if is_open_file(file) else file


def load_image(image: ImageInput) -> NDArray[np.uint8]:
    """An image as RGB, (H, W, 3) uint8, as a viewer shows it.

    Files and PIL images are turned upright by their EXIF orientation, values of 16 bits are divided by 257, palettes
    and other modes are expanded. An image of which any pixel is transparent is laid on white; the reference drops
    alpha and shows what is hidden: for that give `image.convert("RGB")`, or an array of three channels. An open file
    is read from its beginning, and left at the place where it was; one that cannot be rewound is read from there on.
    Raises ImageError for anything that is not a whole image of at least one pixel and at most `MAX_PIXELS`.
    """
    return _from_array(image) if isinstance(image, np.ndarray) else np.asarray(load_rgb(image))


def load_rgb(image: ImageInput, *, fit: Fit = readable_size, reader: PdfReader | None = None) -> Image.Image:
    """What `load_image` gives, as a PIL image of mode RGB: without a second copy of the pixels.

    `fit` says how large a page of a PDF is drawn, and `reader` keeps a document open for its next page.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(_from_array(image))
    if isinstance(image, Image.Image):
        return _from_pil(image)
    data, what, number = _numbered_file(image)
    if is_pdf(data):
        with nullcontext(reader) if reader else PdfReader() as documents:
            document = documents.open(data, what)
            return document.draw(number or document.only(), fit)
    with _faults(what):
        opened, orientation = _open(data, what, number or 1)
        opened.load()  # some EXIF stands behind the pixels
        rgb = to_rgb(opened, what)
        return upright(rgb, orientation_of(opened) if orientation is None else orientation)


def image_size(
    image: ImageInput, *, most_pixels: int = MAX_PIXELS, reader: PdfReader | None = None
) -> tuple[int, int]:
    """Width and height of what `load_image` gives, without decoding it if its head says them; errors as there.

    Of a page of a PDF that is its shape, in more pixels than any grid of tiles has: how large it is drawn is for the
    grid to say. An image of more than `most_pixels` is refused before any is decoded.
    """
    if isinstance(image, (np.ndarray, Image.Image)):
        return load_rgb(image).size
    data, what, number = _numbered_file(image)
    if is_pdf(data):
        with nullcontext(reader) if reader else PdfReader() as documents:
            document = documents.open(data, what)
            return document.shape(number or document.only())
    with _faults(what):
        opened, orientation = _open(data, what, number or 1, most_pixels)
        if opened.format not in _SIZED or (
            opened.format == "PNG" and any(mark in data for mark in _MAY_TURN)
        ):
            return load_rgb(data if number is None else Page(data, number)).size
        turned = (orientation_of(opened) if orientation is None else orientation) in SIDEWAYS
        return (opened.height, opened.width) if turned else (opened.width, opened.height)


def count_pages(image: ImageInput) -> int | None:
    """How many pages a file has if it is a PDF; None for everything else. Raises ImageError where it cannot be read."""
    return document_pages(image)


def document_pages(image: ImageInput, reader: PdfReader | None = None) -> int | None:
    """`count_pages`, with the `reader` of `load_rgb`."""
    if isinstance(image, (np.ndarray, Image.Image)):
        return None
    data, what, _ = _numbered_file(image)
    if not is_pdf(data):
        return None
    with nullcontext(reader) if reader else PdfReader() as documents:
        return documents.open(data, what).pages


def _numbered_file(image: Any) -> tuple[bytes, str, int | None]:
    """The bytes of an image's file, what to call it, and which of its images is meant if that was said."""
    image = single_page(image)
    if isinstance(image, Page):
        return *file_of(image.file), image.number
    return *file_of(image), None


def _open(
    data: bytes, what: str, number: int, most_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, int | None]:
    """An image that is not decoded yet and may be, and its orientation if the file's head says it."""
    if not data:
        raise ImageError(f"{what} is empty")
    data = first_page(data, number, what)
    check_parts(data, what)
    opened, orientation = open_image(data, what)
    _check_size(opened, what, most_pixels)
    check_work(data, opened, what)
    go_to_frame(opened, number, data, what)
    return opened, orientation


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
