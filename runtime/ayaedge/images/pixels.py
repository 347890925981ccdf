"""A decoded picture of any mode to RGB, as a viewer shows it.

Knows Pillow's modes, alpha and orientations; where a picture comes from is the concern of `ayaedge.images.load`.
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
"""What turns a picture upright, by its EXIF orientation."""
_WHITE = (255, 255, 255)
_DEEP_FORMATS = ("PNG", "PPM")
"""Of files that Pillow reads as whole numbers of 32 bits, all from 0 to 65535."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Tags of a TIFF."""


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture turned as an EXIF orientation (1 to 8) says; any other number turns nothing."""
    return picture.transpose(_TURNS[orientation]) if orientation in _TURNS else picture


def to_rgb(picture: Image.Image, what: str) -> Image.Image:
    """The picture in mode RGB: on white where it is transparent, values of 16 bits divided by 257.

    Raises ImageError, which calls it `what`, for values of 32 bits whose range is not known.
    """
    if picture.mode.startswith("I;16"):
        return _from_deep(picture, np.asarray(picture))
    if picture.mode == "I" and picture.format in _DEEP_FORMATS:
        return _from_deep(picture, np.asarray(picture).clip(0, 65535))
    if picture.mode in ("I", "F"):
        raise ImageError(_unknown_range(picture, what))
    if picture.has_transparency_data:
        return _on_white(picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def array_on_white(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An array (H, W, 4) on white, (H, W, 3)."""
    if array[:, :, 3].min() == 255:
        return array[:, :, :3]
    return np.asarray(_on_white(Image.fromarray(np.ascontiguousarray(array))))


def _on_white(picture: Image.Image) -> Image.Image:
    try:
        clear = _with_alpha(picture)
    except (TypeError, ValueError):  # a transparent colour that is none
        plain = picture.copy()
        plain.info.pop("transparency", None)
        return plain.convert("RGB")
    alpha = clear.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return clear.convert("RGB")
    canvas = Image.new("RGB", clear.size, _WHITE)
    canvas.paste(clear, mask=alpha)
    return canvas


def _with_alpha(picture: Image.Image) -> Image.Image:
    if picture.mode == "La":
        picture = picture.convert("LA")
    if picture.mode in ("P", "PA"):
        picture = picture.copy()  # its palette gets the alpha
    return picture if picture.mode == "RGBA" else picture.convert("RGBA")


def _from_deep(picture: Image.Image, values: NDArray[np.generic]) -> Image.Image:
    """From grey values (H, W) of up to 16 bits."""
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    most = (1 << bits) - 1
    shades = ((np.arange(1 << 16, dtype=np.uint32).clip(0, most) * 255 + most // 2) // most).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shades = 255 - shades
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int) and 0 <= transparent < len(shades):
        shades[transparent] = 255
    return Image.fromarray(shades[values]).convert("RGB")


def _unknown_range(picture: Image.Image, what: str) -> str:
    low, high = (float(str(bound)) for bound in picture.getextrema())
    kind = "whole" if picture.mode == "I" else "floating-point"
    return (
        f"{what} holds {kind} numbers from {low:g} to {high:g} (mode {picture.mode}), and nothing says which of them "
        "are black and white: scale them to 0 ... 255 and give a uint8 array, or save the picture with 8 or 16 bits"
    )
