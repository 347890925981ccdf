"""Text files as people hand them over: UTF-8, or whatever Unicode a byte-order mark at their beginning names."""

from __future__ import annotations

import codecs
import io
import os
import secrets
from contextlib import suppress
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


_PARTIAL = ".partial"


ABANDONED = 3600.0
"""Seconds after which an unfinished entry belongs to a process that was killed."""


def make_private(directory: Path) -> None:
    """Make a directory that only its owner may look into, and close one that others may."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_mode & 0o077:
        with suppress(OSError):  # not ours
            directory.chmod(0o700)


def can_read(path: Path) -> bool:
    """Whether there is a file or directory that this user may read."""
    return os.access(path, os.R_OK)


def can_write(directory: Path) -> bool:
    """Whether files can be put into a directory, which is made, and closed to others, if need be."""
    try:
        make_private(directory)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def matching(directory: Path, pattern: str) -> list[Path]:
    """Paths below a directory; none if it is missing or may not be looked into."""
    return list(directory.glob(pattern)) if os.access(directory, os.R_OK | os.X_OK) else []


def write_private(path: Path, text: str) -> None:
    """Write a file whole, into a directory that only its owner may look into; OSError, and nothing left, if not."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PARTIAL}")
    try:
        make_private(path.parent.parent)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
