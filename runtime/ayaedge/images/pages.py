"""Pages and frames: one image out of a file that has several, and how it is named.

`report.pdf#page=3`, `#pages=1-4` or `#pages=2,5` behind a path or URL; `#frame=` and `#frames=` mean the same, as
people call the pages of an animated file frames. A file whose own name ends like that is that file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayaedge.checks import check_options, plain, whole_number
from ayaedge.errors import ImageError
from ayaedge.images.sources import file_url_path, is_url, shorten

MOST_PAGES = 1000
"""That one name may stand for."""
_SELECTOR = re.compile(r"#(?:page|frame)s?=(\d{1,7}(?:-\d{1,7})?(?:,\d{1,7}(?:-\d{1,7})?)*)\s*\Z")


@dataclass(frozen=True)
class Page:
    """A page of a PDF or TIFF, or a frame of an animated image: one of the images in a file."""

    file: Any
    """A path, `file://` or data URL, the bytes of a file, or a file opened for reading bytes."""
    number: int = 1
    """Counted from 1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", plain(self.number))
        check_options(whole_number("the number of a page", self.number, least=1))


def split_selector(name: str) -> tuple[str, tuple[int, ...]]:
    """A name without the pages that it selects, and their numbers; none where it selects none.

    Raises ImageError for numbers that no pages have, and for too many.
    """
    found = _SELECTOR.search(name)
    if found is None:
        return name, ()
    numbers: list[int] = []
    for part in found[1].split(","):
        first, _, last = part.partition("-")
        start, stop = int(first), int(last or first)
        if not 0 < start <= stop:
            raise ImageError(f"{shorten(found[0][1:])} names no pages: they are counted from 1, upwards")
        if len(numbers) + stop - start >= MOST_PAGES:
            raise ImageError(f"{shorten(found[0][1:])} names more than {MOST_PAGES} pages: ask in portions")
        numbers.extend(range(start, stop + 1))
    return name[: found.start()], tuple(numbers)


def given_pages(image: Any) -> list[Any]:
    """The images that one that was given stands for: pages that a name selects, or else itself."""
    if not isinstance(image, (str, os.PathLike)):
        return [image]
    try:
        name = os.fsdecode(image)
    except TypeError:  # said when it is read
        return [image]
    file, numbers = split_selector(name)
    if not numbers or _is_file(name):
        return [image]
    return [Page(file, number) for number in numbers]


def single_page(image: Any) -> Any:
    """The one image that a name stands for; ImageError if it stands for several."""
    pages = given_pages(image)
    if len(pages) > 1:
        raise ImageError(f"{shorten(os.fsdecode(image))} names {len(pages)} pages: name one here")
    return pages[0]


def _is_file(name: str) -> bool:
    """Whether a name that looks as if it selected pages is that of a file."""
    if name[:5].lower() == "data:":
        return False
    path = file_url_path(name.strip()) if is_url(name) else name
    try:
        return path is not None and Path(path).is_file()
    except (OSError, ValueError):
        return False
