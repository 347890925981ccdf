"""Sheets: what questions may be about. All of this is slow, and for other threads than the window's."""

from PIL import Image
from PySide6 import QtCore, QtGui

from ayaedge import AyaVision, ImageInput, Page, Speeds, TileOption, count_pages, load_image

MOST = QtCore.QSize(1600, 1600)
"""Pixels of what is shown: more would take long to draw with each tile."""


def sheets_of(paths: list[str]) -> list[ImageInput]:
    """Pictures as they are, documents page by page."""
    sheets: list[ImageInput] = []
    for path in paths:
        pages = count_pages(path)
        sheets += [path] if pages is None else [Page(path, number + 1) for number in range(pages)]
    return sheets


def looks_of(
    model: AyaVision, sheet: ImageInput, speeds: Speeds | None
) -> tuple[QtGui.QImage, list[TileOption]]:
    """A sheet as the model sees it, and what it may cost."""
    pixels = load_image(sheet)  # (H, W, 3)
    height, width, _ = pixels.shape
    image = QtGui.QImage(pixels.tobytes(), width, height, 3 * width, QtGui.QImage.Format.Format_RGB888)
    fit, smooth = QtCore.Qt.AspectRatioMode.KeepAspectRatio, QtCore.Qt.TransformationMode.SmoothTransformation
    small = image.scaled(MOST.boundedTo(image.size()), fit, smooth)
    return small, model.tile_options(sheet, speeds=speeds)


def part_of(sheet: ImageInput, part: QtCore.QRectF) -> list[ImageInput]:
    """A part of a sheet whose sides go from 0 to 1, as the only sheet."""
    whole = Image.fromarray(load_image(sheet))
    left, right = (round(side * whole.width) for side in (part.left(), part.right()))
    top, bottom = (round(side * whole.height) for side in (part.top(), part.bottom()))
    return [whole.crop((left, top, max(right, left + 1), max(bottom, top + 1)))]
