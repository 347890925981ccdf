"""Text files as people hand them over: UTF-8, or whatever Unicode a byte-order mark at their beginning names."""

from __future__ import annotations

import codecs
import io
from pathlib import Path

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Windows PowerShell writes UTF-16, and many an editor there UTF-8, with these marks."""


def read_text(path: Path) -> str:
    """The text of a file without its byte-order mark, with plain line breaks; OSError, or ValueError for no Unicode.

    It is read once, so that it may be a pipe.
    """
    data = path.read_bytes()
    return io.TextIOWrapper(io.BytesIO(data), encoding_of(data)).read()


def encoding_of(data: bytes) -> str:
    """In which encoding text is that begins with these bytes."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
