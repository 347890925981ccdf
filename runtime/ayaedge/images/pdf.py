"""Pages of PDF documents as images, drawn by pdfium in a process of its own (`images.pdf_process`).

A page has a shape and no size: the caller says how many pixels are drawn, so that none is drawn in vain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from PIL import Image

from ayaedge.cancellation import Cancellation
from ayaedge.errors import BackendError, ImageError
from ayaedge.hardware.children import Child
from ayaedge.images.pdf_process import MOST_MEMORY, MOST_SECONDS, serve
from ayaedge.untrusted.json_text import parse_json

MOST_DOCUMENT_BYTES = 256 << 20
_BEGINNING = b"\xef\xbb\xbf\0 \t\r\n\f"
"""What may stand before a document's mark."""
_LONGEST_SIDE = 4096
"""Pixels of the longer side of a page's shape: larger than any grid of tiles."""
_READABLE = 1754
"""The same where nobody says how large a page is to be drawn: A4 at 150 dots per inch."""
_LEAST_SIDE, _MOST_RATIO = 0.5, 200
"""Points of a page's shorter side, and how many times as long the other one may be."""
_ADVICE = "make images of its pages with another program"
_FAULTS = {
    "missing": 'whose pages pypdfium2 draws: pip install "ayaedge[pdf]"; or make images of its pages, for example with '
    "pdftoppm",
    "encrypted": "that is encrypted: save a copy without a password, for example with qpdf",
    "damaged": f"a PDF: {_ADVICE}, as pdfium finds it damaged",
}
Fit = Callable[[tuple[int, int]], tuple[int, int]]
"""From a page's shape, (width, height), to the size in which it is drawn, both in pixels."""


def is_pdf(data: bytes) -> bool:
    """Whether bytes are a PDF by their beginning."""
    return data[:1024].lstrip(_BEGINNING).startswith(b"%PDF-")


def readable_size(shape: tuple[int, int]) -> tuple[int, int]:
    """For people and for those who do not know a grid: A4 at 150 dots per inch."""
    scale = _READABLE / max(shape)
    return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


class PdfReader:
    """Opens documents one after the other, the last of which stays open; a context manager that ends its process.

    Cancelling `flag` ends what it does.
    """

    def __init__(self, flag: Cancellation | None = None) -> None:
        self._flag = flag or Cancellation()
        self._opened: tuple[bytes, PdfDocument] | None = None

    def __enter__(self) -> PdfReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process of the open document."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened[1].close()

    def open(self, data: bytes, what: str) -> PdfDocument:
        """A document, called `what` in errors; ImageError if it cannot be opened."""
        if self._opened is None or self._opened[0] != data or self._opened[1].over:
            self.close()
            self._opened = (data, PdfDocument(data, what, self._flag))
        return self._opened[1]


class PdfDocument:
    """A document that pdfium has opened in a child; `close()` ends it."""

    def __init__(self, data: bytes, what: str, flag: Cancellation):
        self._what, self._flag, self.over = what, flag, False
        if len(data) > MOST_DOCUMENT_BYTES:
            raise ImageError(
                f"{what} is a PDF of {len(data)} bytes, more than the {MOST_DOCUMENT_BYTES} that are read: split it"
            )
        if b"obj" not in data:
            raise self._fault("damaged")
        try:
            self._child = Child(serve, len(data))
        except BackendError as error:
            raise ImageError(f"{what} is a PDF, which is read in a process of its own: {error}") from None
        try:
            self.pages: int = self._ask("pages", self._child.opening.encode(), "opening it", then=data)
            if self.pages < 1:
                raise ImageError(f"{what} is a PDF without pages")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        self.over = True
        self._child.close()

    def only(self) -> int:
        """The number of the only page; ImageError if there are several, which says how to name one."""
        if self.pages == 1:
            return 1
        raise ImageError(
            f"{self._what} has {self.pages} pages: say which, with #page=1 or #pages=1-{self.pages} behind its name"
        )

    def shape(self, number: int) -> tuple[int, int]:
        """Width and height of a page, scaled so that the longer side has 4096 pixels; ImageError if there is none."""
        if number > self.pages:
            raise ImageError(f"{self._what} has {self.pages} page{'s' * (self.pages > 1)}, not {number}")
        given = self._ask("shape", f"{number}\n".encode(), f"page {number}")
        short, long = sorted(given)
        if short < _LEAST_SIDE or long > _MOST_RATIO * short:
            size = f"{given[0]:g} x {given[1]:g} points"
            raise ImageError(f"page {number} of {self._what} measures {size}: that is no page")
        width, height = (max(round(side * _LONGEST_SIDE / long), 1) for side in given)
        return width, height

    def draw(self, number: int, fit: Fit) -> Image.Image:
        """A page as RGB, on white; `fit` says in which size. Raises ImageError for what cannot be drawn."""
        width, height = fit(self.shape(number))
        what = f"page {number} at {width} x {height} pixels"
        pixels = self._ask("pixels", f"{number} {width} {height}\n".encode(), what, size=3 * width * height)
        return Image.frombuffer("RGB", (width, height), pixels, "raw", "RGB", 0, 1)

    def _ask(self, name: str, request: bytes, what: str, *, then: bytes = b"", size: int = 0) -> Any:
        """What the child answers under this name; ImageError if it is a fault, or if it dies or takes too long."""
        late = threading.Event()
        timer = threading.Timer(MOST_SECONDS, self._end, [late])
        timer.daemon = True
        timer.start()
        try:
            with self._flag.ending(self._child.process.kill):
                found = self._exchange(request, then, size)
        finally:
            timer.cancel()
        if found is None:
            self.over = True
            self._flag.check()
            raise ImageError(self._death(what, late=late.is_set()))
        if name not in found:
            raise self._fault(str(found.get("fault")))
        return found[name]

    def _exchange(self, request: bytes, then: bytes, size: int) -> dict[str, Any] | None:
        process = self._child.process
        assert process.stdin is not None and process.stdout is not None
        with suppress(OSError, ValueError):  # it has died: reading will tell
            process.stdin.write(request)
            process.stdin.flush()
            if then:
                process.stdout.readline(_LONGEST_LINE)  # it waits for the document
                process.stdin.write(then)
                process.stdin.flush()
        line = process.stdout.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            return None
        found = _checked(line)
        if size and found.get("bytes") == size:
            found["pixels"] = process.stdout.read(size)
            return found if len(found["pixels"]) == size else None
        return found

    def _end(self, late: threading.Event) -> None:
        late.set()
        self._child.process.kill()

    def _death(self, what: str, *, late: bool) -> str:
        if late:
            cost = f"takes longer than the {MOST_SECONDS} s that it may take"
        else:
            cost = (
                f"ended pdfium ({self._child.death()}), as pages do that are damaged or need more than "
                f"{MOST_MEMORY >> 30} GB of memory"
            )
        return f"{self._what} is a PDF: {_ADVICE}; {what} {cost}"

    def _fault(self, name: str) -> ImageError:
        text = _FAULTS.get(name, _FAULTS["damaged"])
        return ImageError(f"{self._what} is {text if text.startswith('a PDF') else f'a PDF {text}'}")


_LONGEST_LINE = 1000


def _checked(line: bytes) -> dict[str, Any]:
    """What the child said, in the form that it must have; empty if it has not, for it may have been taken over."""
    try:
        found = parse_json(line)
        shape = found.get("shape", [1.0, 1.0])
        whole = all(type(found.get(name, 0)) is int for name in ("pages", "bytes"))
        numbers = len(shape) == 2 and all(type(side) in (int, float) for side in shape)
    except (ValueError, AttributeError, TypeError):
        return {"fault": "damaged"}
    return dict(found) if whole and numbers else {"fault": "damaged"}
