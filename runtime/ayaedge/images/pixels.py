"""A decoded image of any mode to RGB, as a viewer shows it.

Knows Pillow's modes, alpha and orientations; where an image comes from is the concern of `ayaedge.images.load`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ayaedge.errors import ImageError

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What turns an image upright, by its EXIF orientation."""
SIDEWAYS = frozenset({5, 6, 7, 8})
"""Orientations that exchange width and height."""
_WHITE = (255, 255, 255)
_DEEP_FORMATS = ("PNG", "PPM")
"""Of files that Pillow reads as whole numbers of 32 bits, all from 0 to 65535."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of a TIFF."""


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned as an EXIF orientation (1 to 8) says; any other number turns nothing."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def to_rgb(image: Image.Image, what: str) -> Image.Image:
    """The image in mode RGB: on white where it is transparent, values of 16 bits divided by 257.

    Raises ImageError, which calls it `what`, for values of 32 bits whose range is not known.
    """
    if image.mode.startswith("I;16"):
        return _from_deep(image, np.asarray(image))
    if image.mode == "I" and image.format in _DEEP_FORMATS:
        return _from_deep(image, np.asarray(image).clip(0, 65535))
    if image.mode in ("I", "F"):
        raise ImageError(_unknown_range(image, what))
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def array_on_white(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An array (H, W, 4) on white, (H, W, 3)."""
    if array[:, :, 3].min() == 255:
        return array[:, :, :3]
    return np.asarray(_on_white(Image.fromarray(np.ascontiguousarray(array))))


def _on_white(image: Image.Image) -> Image.Image:
    try:
        clear = _with_alpha(image)
    except (TypeError, ValueError):  # a transparent colour that is none
        plain = image.copy()
        plain.info.pop("transparency", None)
        return plain.convert("RGB")
    alpha = clear.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return clear.convert("RGB")
    canvas = Image.new("RGB", clear.size, _WHITE)
    canvas.paste(clear, mask=alpha)
    return canvas


def _with_alpha(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("P", "PA"):
        image = image.copy()  # its palette gets the alpha
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _from_deep(image: Image.Image, values: NDArray[np.generic]) -> Image.Image:
    """From grey values (H, W) of up to 16 bits."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    most = (1 << bits) - 1
    shades = ((np.arange(1 << 16, dtype=np.uint32).clip(0, most) * 255 + most // 2) // most).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shades = 255 - shades
    transparent = image.info.get("transparency")
    if isinstance(transparent, int) and 0 <= transparent < len(shades):
        shades[transparent] = 255
    return Image.fromarray(shades[values]).convert("RGB")


def _unknown_range(image: Image.Image, what: str) -> str:
    low, high = (float(str(bound)) for bound in image.getextrema())
    kind = "whole" if image.mode == "I" else "floating-point"
    return (
        f"{what} holds {kind} numbers from {low:g} to {high:g} (mode {image.mode}), and nothing says which of them "
        "are black and white: scale them to 0 ... 255 and give a uint8 array, or save the image with 8 or 16 bits"
    )
