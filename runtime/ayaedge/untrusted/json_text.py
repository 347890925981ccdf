"""JSON that anybody may have written: its size, depth and numbers are bounded before anything is built from it.

The one way in which ayaedge reads JSON that it has not just written itself:

    try:
        data = read_json(path, most_bytes=1 << 20)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}") from None

`parse_json` is for bytes that are in memory already. A `ValueError` says in half a sentence what is wrong ("it is
nested more than 64 deep"); nothing else is raised for bad content. What comes back consists of dict, list, str, int,
float, bool and None, which `json.dumps` can write again. Whether it has the right form is for the caller to check.
Parsed JSON takes up to 30 times the bytes of its text, so `most_bytes` bounds memory too.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from ayaedge.files import encoding_of
from ayaedge.untrusted.regular_file import read_regular

MOST_DEPTH = 64
"""Objects and lists within each other."""
MOST_DIGITS = 20
"""Of a whole number: those of 64 bits have as many at most, and Python's time for one grows with their square."""
_BRACKETS = re.compile(r'(?:"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)[^]["{}]*){1,200}|[][{}]', re.DOTALL)
"""Strings, which are skipped, and brackets. A string without an end matches too: each character is seen once."""
_SHOWN = 40


def read_json(
    path: Path,
    *,
    most_bytes: int,
    most_depth: int = MOST_DEPTH,
    most_digits: int = MOST_DIGITS,
    constants: bool = False,
    links: bool = True,
) -> Any:
    """Parse a regular file of at most `most_bytes`; ValueError for what is wrong with it, OSError as `open`.

    Without `links` a symbolic link is an OSError: for files that nobody but ayaedge puts where they are. The rest is
    that of `parse_json`.
    """
    data = read_regular(path, most_bytes=most_bytes, links=links)
    return parse_json(data, most_depth=most_depth, most_digits=most_digits, constants=constants)


def parse_json(
    data: bytes,
    *,
    most_depth: int = MOST_DEPTH,
    most_digits: int = MOST_DIGITS,
    constants: bool = False,
) -> Any:
    """Parse JSON in any encoding of Unicode, with or without a mark.

    ValueError for text that is no JSON or no Unicode, NaN and Infinity unless `constants` are allowed, numbers beyond
    a float or `most_digits`, a name that an object has twice, and more than `most_depth` objects and lists within each
    other.
    """
    try:
        text = data.decode(encoding_of(data))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not valid Unicode: {error.reason} at byte {error.start}") from None
    _check_depth(text, most_depth)
    value = json.loads(
        text,
        parse_int=partial(_whole, most_digits),
        parse_float=_real,
        parse_constant=float if constants else _refuse,
        object_pairs_hook=_object,
    )
    if "\\u" in text:
        _check_unicode(value)
    return value


def _check_depth(text: str, most: int) -> None:
    """Before it is parsed: the parser recurses as deep as Python's limit, which a program may have raised too far."""
    depth = 0
    for found in _BRACKETS.finditer(text):
        first = text[found.start()]
        if first in "[{":
            depth += 1
            if depth > most:
                raise ValueError(f"it is nested more than {most} deep")
        elif first != '"':
            depth -= 1


def _whole(most: int, digits: str) -> int:
    if len(digits.lstrip("-")) > most:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it holds {digits[:_SHOWN]}, which is too large a number")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has {twice[:_SHOWN]!r} twice")
    return found


def _check_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text is not valid Unicode: {error.reason}") from None
