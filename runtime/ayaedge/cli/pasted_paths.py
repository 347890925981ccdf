"""Paths of files as people write them into a line and as terminals paste them: quoted, escaped, as file URLs.

Knows text only. Where a line can be read in several ways (a backslash escapes in one shell and separates folders in
another), the reading whose files exist is taken; what exists is asked of the caller.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from ayaedge.images.pages import split_selector
from ayaedge.images.sources import file_url_path

WINDOWS = os.name == "nt"
BLANKS = " \t\r\n"
"""What separates words; other blanks of Unicode occur inside file names (macOS writes U+202F into screenshots')."""
_ESCAPED_IN_QUOTES = '"\\$`'
_WINDOWS_PATH = re.compile(r"""["']?([A-Za-z]:\\|\\\\\w)""")
_OTHER_SUFFIXES = {".heic", ".heif", ".pdf"}
"""Images by their names, though Pillow alone cannot read them: the error is to say so."""


@dataclass(frozen=True)
class Word:
    """A part of a line."""

    text: str
    """Without its quotation marks and escapes."""
    start: int
    """Where it begins in the line."""
    quote: str = ""
    """The quotation mark that is still open at its end."""


def split_words(line: str, *, escapes: bool) -> list[Word]:
    """The words of a line: with `escapes` as POSIX shells read them, else as Windows' do.

    In the latter a backslash is a character like any other, and a quotation mark quotes only where a word begins.
    A quotation that is not closed ends with the line.
    """
    words: list[Word] = []
    place = 0
    while True:
        while place < len(line) and line[place] in BLANKS:
            place += 1
        if place == len(line):
            return words
        word, place = _read_word(line, place, escapes)
        words.append(word)


def _read_word(line: str, start: int, escapes: bool) -> tuple[Word, int]:
    text, quote, place = "", "", start
    while place < len(line) and (quote or line[place] not in BLANKS):
        char, following = line[place], line[place + 1 : place + 2]
        if _escapes(char, following, quote, escapes):
            text += following
            place += 1
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"" and (escapes or place == start):
            quote = char
        else:
            text += char
        place += 1
    return Word(text, start, quote), place


def _escapes(char: str, following: str, quote: str, escapes: bool) -> bool:
    """Whether `char` only says that `following` is meant literally."""
    if not escapes:
        return char == following == quote == "'"  # PowerShell doubles it
    if char != "\\" or quote == "'":
        return False
    return following in _ESCAPED_IN_QUOTES if quote and following else bool(following)


def find_paths(line: str, exists: Callable[[str], bool], *, windows: bool = WINDOWS) -> list[str]:
    """The paths that a line consists of; if those of no reading all exist, the ones that this system's shell reads."""
    readings = _readings(line, windows)
    return next((paths for paths in readings if paths and all(map(exists, paths))), readings[0])


def find_path(line: str, exists: Callable[[str], bool], *, windows: bool = WINDOWS) -> str:
    """The one path that a line consists of, which may have blanks and need not exist; "" for a blank line."""
    single = [paths[0] for paths in _readings(line, windows) if len(paths) == 1]
    return next(filter(exists, single), single[0] if single else "")


def _readings(line: str, windows: bool) -> list[list[str]]:
    """As POSIX shells read it, as Windows' do (which comes first where that is likelier), and each line as one path."""
    shell = [word.text for word in split_words(line, escapes=True)]
    plain = [word.text for word in split_words(line.removeprefix("& "), escapes=False)]  # PowerShell's call
    lines = [part.strip(BLANKS) for part in line.split("\n") if part.strip(BLANKS)]
    windows = windows or _WINDOWS_PATH.match(line.strip(BLANKS)) is not None
    orders = [plain, shell, lines] if windows else [shell, plain, lines]
    return [[_expanded(word) for word in words] for words in orders]


def _expanded(word: str) -> str:
    """A word as a path: file URLs and ~ resolved."""
    if word[:5].lower() == "file:":
        return file_url_path(word, windows=True) or word  # pasted text may be of another computer
    if word.startswith("~"):
        try:
            return str(Path(word).expanduser())
        except RuntimeError:  # there is no such user
            return word
    return word


def quote_path(path: str, *, quote: str = "", complete: bool = True, windows: bool = WINDOWS) -> str:
    """A path as `split_words` reads it back, inside the quotation that was begun, which is closed if `complete`."""
    if not quote and windows and any(blank in path for blank in BLANKS):
        quote = '"'
    if not quote:
        return path if windows else re.sub(r"""([ \t\r\n\\'"])""", r"\\\1", path)
    if quote == "'":
        path = path.replace("'", "''" if windows else "'\\''")
    elif not windows:
        path = re.sub(r'(["\\$`])', r"\\\1", path)
    return quote + path + (quote if complete else "")


@lru_cache
def image_suffixes() -> frozenset[str]:
    """How the names of images end, in lower case with the dot."""
    known = Image.registered_extensions()
    return frozenset({suffix for suffix, form in known.items() if form in Image.OPEN} | _OTHER_SUFFIXES)


def is_file(path: str) -> bool:
    """Whether there is such a file, or one of which it names pages; text that cannot be a path is none."""
    try:
        return Path(path).is_file() or Path(split_selector(path)[0]).is_file()
    except (OSError, ValueError):  # ImageError among them, for pages that there cannot be
        return False


def is_image_file(path: str) -> bool:
    """Whether there is such a file and its name is that of an image."""
    if not is_file(path):
        return False
    return any(Path(name).suffix.lower() in image_suffixes() for name in (path, path.rpartition("#")[0]))
