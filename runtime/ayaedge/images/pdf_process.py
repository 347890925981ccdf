"""The process in which pdfium opens one document and draws its pages.

pdfium decodes what anybody may have written: here it can end or occupy nothing but this process, which has a limit of
its time and, where the system has such a limit, of its memory. What is said with `images.pdf`: lines of text in; lines
of JSON out, and pixels behind some.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, BinaryIO

MOST_SECONDS = 60
"""For opening a document, and for drawing a page."""
MOST_MEMORY = 2 << 30
"""Bytes beside the program's own, where the system counts them: on Linux."""
_REASONS = {"PASSWORD": "encrypted", "SECURITY": "encrypted"}


class Pages:
    """A document in this process; ValueError names what is wrong with it: `missing`, `encrypted` or `damaged`."""

    def __init__(self, data: bytes):
        try:
            import pypdfium2
            import pypdfium2.raw as pdfium
        except ImportError:
            raise ValueError("missing") from None
        self._pdfium = pdfium
        try:
            self._document: Any = pypdfium2.PdfDocument(data)
        except pypdfium2.PdfiumError:
            names = [
                name for name in _REASONS if pdfium.FPDF_GetLastError() == getattr(pdfium, f"FPDF_ERR_{name}")
            ]
            raise ValueError(_REASONS[names[0]] if names else "damaged") from None
        with suppress(pypdfium2.PdfiumError):  # fields that were filled in are drawn by it alone
            self._document.init_forms()
        self._bitmap = pypdfium2.PdfBitmap
        self._error: type[Exception] = pypdfium2.PdfiumError

    def __len__(self) -> int:
        return len(self._document)

    def shape(self, number: int) -> tuple[float, float]:
        """Width and height of a page, in points, upright."""
        with self._page(number) as page:
            width, height = page.get_size()
            return width, height

    def draw(self, number: int, width: int, height: int) -> bytes:
        """A page on white, stretched to this size: RGB, row by row."""
        pdfium = self._pdfium
        with self._page(number) as page:
            bitmap = self._bitmap.new_native(width, height, format=pdfium.FPDFBitmap_BGR, rev_byteorder=True)
            bitmap.fill_rect((255, 255, 255, 255), 0, 0, width, height)
            place = (bitmap, page, 0, 0, width, height, 0, pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER)
            pdfium.FPDF_RenderPageBitmap(*place)
            if self._document.formenv:
                pdfium.FPDF_FFLDraw(self._document.formenv, *place)
            return bytes(bitmap.to_numpy())

    def _page(self, number: int) -> Any:
        from contextlib import closing

        try:
            return closing(self._document[number - 1])
        except self._error:
            raise ValueError("damaged") from None


def serve(size: int) -> None:
    """Be the process: read a document of `size` bytes from stdin, then requests, until stdin ends."""
    source, target = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # what libraries print must not come between
    _limit()
    with os.fdopen(source, "rb") as asked, os.fdopen(target, "wb") as told:
        _tell(told, {})  # nothing is read ahead any more
        try:
            pages = Pages(asked.read(size))
            _tell(told, {"pages": len(pages)})
        except ValueError as error:
            _tell(told, {"fault": str(error)})
            return
        for line in asked:
            _answer(pages, [int(word) for word in line.split()], told)
    os._exit(0)  # pdfium's own tidying up is worth nothing here, and may fail


def _answer(pages: Pages, numbers: list[int], told: BinaryIO) -> None:
    """A page's shape, or its pixels if a size is given."""
    try:
        if len(numbers) == 1:
            _tell(told, {"shape": list(pages.shape(*numbers))})
            return
        pixels = pages.draw(*numbers)
        _tell(told, {"bytes": len(pixels)})
        told.write(pixels)
        told.flush()
    except ValueError as error:
        _tell(told, {"fault": str(error)})


def _tell(told: BinaryIO, said: dict[str, Any]) -> None:
    told.write(json.dumps(said).encode() + b"\n")
    told.flush()


def _limit() -> None:
    """On time, in case that the program which waits is killed; and on memory."""
    if sys.platform == "win32":
        return
    import resource

    for name, most in (("RLIMIT_CPU", 2 * MOST_SECONDS), ("RLIMIT_DATA", MOST_MEMORY)):
        with suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, name), (most, most))
