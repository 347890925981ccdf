"""What a batch is about: folders, patterns, lists, documents and OpenAI's batch files, as one item for each row."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ayaedge.checks import check_options, instance
from ayaedge.errors import ImageError, InvalidOptionError
from ayaedge.files import read_text
from ayaedge.images.load import count_pages
from ayaedge.images.pages import Page, given_pages
from ayaedge.images.sources import TakenPath
from ayaedge.untrusted.json_text import parse_json

_VARIABLE = re.compile(r"\{(name|stem|directory|page)\}")
_MORE_SUFFIXES = {".heic", ".heif", ".pdf"}
_NUMBERS = re.compile(r"(\d+)")
_COMPLETIONS = "/v1/chat/completions"
_LONGEST_LINE = 1 << 28
"""Bytes of a request of a batch file, its images included."""


@dataclass(frozen=True)
class BatchItem:
    """One row that is wanted: an image with a question, or a request in OpenAI's form."""

    image: Any = None
    """Anything that `AyaVision.ask` takes as an image."""
    prompt: str | None = None
    """Instead of the batch's own; `{name}`, `{stem}`, `{directory}` and `{page}` stand for those of the image."""
    custom_id: str | None = None
    """What OpenAI's batch files call it."""
    request: Mapping[str, Any] | None = None
    """The body of a chat completion; the other fields but `custom_id` are not looked at then."""
    skip: bool = False
    """Whether it is not asked where no answer is known; its row has the stop reason `skipped` then."""

    def __post_init__(self) -> None:
        check_options(instance("skip", self.skip, bool))

    @property
    def file(self) -> Path | None:
        """The image's file, if it is named by a path."""
        named = self.image.file if isinstance(self.image, Page) else self.image
        if isinstance(named, TakenPath):
            return named.path
        if isinstance(named, str) and (named[:5].lower() == "data:" or "://" in named):
            return None
        return Path(named) if isinstance(named, (str, os.PathLike)) else None

    @property
    def page(self) -> int | None:
        """Which of the file's images it is, if that was said."""
        return self.image.number if isinstance(self.image, Page) else None

    def question(self, prompt: str) -> str:
        """The prompt with what its variables stand for; other braces stay as they are."""
        path = self.file or Path()
        values = {
            "name": path.name,
            "stem": path.stem,
            "directory": path.absolute().parent.name,
            "page": "" if self.page is None else str(self.page),
        }
        return _VARIABLE.sub(lambda found: values[found[1]], self.prompt or prompt)


def as_item(given: Any) -> BatchItem:
    """What a caller gave as an item: one, or an image."""
    return given if isinstance(given, BatchItem) else BatchItem(given)


def find_items(inputs: Iterable[str], *, recursive: bool = False) -> Iterator[BatchItem]:
    """The items of folders, patterns, files, pages and OpenAI's `.jsonl`, in their order; of a folder by name.

    Documents stand for all their pages. A document that cannot be opened is an item too, whose row says why.
    InvalidOptionError for what is not there.
    """
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            paths = path.rglob("*") if recursive else path.glob("*")
            yield from _all_pages(_images_of(paths))
        elif path.suffix.lower() == ".jsonl" and path.is_file():
            yield from _requests(path)
        elif path.is_file() or given[:5].lower() in ("data:", "file:"):
            yield from _all_pages([path] if path.is_file() else [given])
        elif len(pages := given_pages(given)) > 1 or isinstance(pages[0], Page):
            yield from map(BatchItem, pages)
        elif found := glob.glob(given, recursive=True) if glob.has_magic(given) else []:  # noqa: PTH207
            yield from _all_pages(_images_of(map(Path, found)))
        else:
            raise InvalidOptionError(
                f"there is neither a file nor a folder {given}, and nothing that it matches"
            )


def listed(path: Path) -> list[str]:
    """The inputs that a list names, a line each; blank lines and lines that begin with # are passed over."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise InvalidOptionError(f"the list {path} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _images_of(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if _is_image(path)), key=_natural)


def _is_image(path: Path) -> bool:
    known = Image.registered_extensions()
    suffix = path.suffix.lower()
    return (known.get(suffix) in Image.OPEN or suffix in _MORE_SUFFIXES) and path.is_file()


def _natural(path: Path) -> list[Any]:
    """Page 9 before page 10."""
    return [int(part) if part.isdecimal() else part.lower() for part in _NUMBERS.split(str(path))]


def _all_pages(paths: Iterable[Any]) -> Iterator[BatchItem]:
    for path in map(str, paths):
        try:
            count = count_pages(path) if path.lower().endswith(".pdf") else None
        except ImageError:
            count = None  # its row says what is wrong
        if count is None:
            yield BatchItem(path)
        else:
            yield from (BatchItem(Page(path, number)) for number in range(1, count + 1))


def _requests(path: Path) -> Iterator[BatchItem]:
    """https://platform.openai.com/docs/guides/batch"""
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(_LONGEST_LINE):
            number += 1
            if line.strip():
                yield _request(line, f"line {number} of {path}")


def _request(line: bytes, place: str) -> BatchItem:
    try:
        given = parse_json(line)
    except ValueError as error:
        raise InvalidOptionError(f"{place} is not valid JSON: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("body"), dict):
        raise InvalidOptionError(f"{place} must be a request with custom_id, method, url and body")
    if given.get("url") != _COMPLETIONS or given.get("method", "POST") != "POST":
        raise InvalidOptionError(
            f"{place} must be a POST to {_COMPLETIONS}, not {str(given.get('url'))[:60]!r}"
        )
    if not isinstance(given.get("custom_id"), str):
        raise InvalidOptionError(f"{place} has no custom_id")
    return BatchItem(custom_id=given["custom_id"], request=given["body"])
