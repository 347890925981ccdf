"""Files: text as people hand it over, directories for one user alone, and files that appear whole or not at all."""

from __future__ import annotations

import codecs
import errno
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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
    return text_of(path.read_bytes())


def text_of(data: bytes) -> str:
    """The text that a file of these bytes holds; ValueError for no Unicode."""
    return io.TextIOWrapper(io.BytesIO(data), encoding_of(data)).read()


def encoding_of(data: bytes) -> str:
    """In which encoding text is that begins with these bytes."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")


PARTIAL = ".partial"
"""How names of unfinished files and directories end."""
ABANDONED = 3600.0
"""Seconds after which an unfinished entry belongs to a process that was killed."""
SECRET = "secret"
"""Name of the file by which a directory of this user's is known."""
_UNFINISHED = re.compile(rf"\.[0-9a-f]{{16}}{re.escape(PARTIAL)}")
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def make_private(directory: Path) -> None:
    """Make a directory that only its owner may look into; OSError for one that is not this user's own.

    One that is there is closed to others if it was made here: if it is empty, or holds the user's secret.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if fault := not_own(directory):
        raise PermissionError(fault)
    made_here = (directory / SECRET).is_file() or not any(directory.iterdir())
    if directory.stat().st_mode & 0o077 and made_here:
        directory.chmod(0o700)


def not_own(directory: Path) -> str | None:
    """Why a directory is not this user's own, half a sentence; None if it is, or is not there.

    A link to it must be his own too: it decides where files go. Windows has other means, and is not asked.
    """
    if not hasattr(os, "geteuid"):
        return None
    try:
        found = (directory.lstat(), directory.stat())
    except OSError:
        return None
    if any(status.st_uid != os.geteuid() for status in found):
        return "it belongs to another user"
    if found[1].st_mode & _WRITABLE_BY_OTHERS:
        return f"others may write into it (chmod 700 {directory} ends that)"
    return None


def can_read(path: Path) -> bool:
    """Whether there is a file or directory that this user may read."""
    return os.access(path, os.R_OK)


def can_write(directory: Path) -> bool:
    """Whether files can be put into a directory of this user's own, which is made if need be."""
    try:
        make_private(directory)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)


def resolved(path: Path) -> Path:
    """The path with all links followed; OSError if they lead in a circle, which Python says in other ways.

    ValueError if it holds a zero.
    """
    try:
        found = path.resolve()
    except RuntimeError:  # until Python 3.12
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    if any(part.is_symlink() for part in (found, *found.parents)):  # since 3.13: as far as they lead
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return found


def matching(directory: Path, pattern: str) -> list[Path]:
    """Paths below a directory; none if it is missing or may not be looked into."""
    return list(directory.glob(pattern)) if os.access(directory, os.R_OK | os.X_OK) else []


def unfinished(path: Path) -> Path:
    """A new name next to `path`, for what shall take its place."""
    return path.with_name(f".{secrets.token_hex(8)}{PARTIAL}")


@contextmanager
def replacing(
    path: Path,
    *,
    private: bool,
    sync: bool = False,
    put: Callable[[Path, Path], object] | None = None,
) -> Iterator[BinaryIO]:
    """Write a file next to `path` that takes its place at the end, whole; it goes away if anything fails.

    Only its owner may read it if it is `private`. With `sync` it is on the disk before it takes its place. `put` is
    called with the new file and `path` instead of a rename.
    """
    temporary = unfinished(path)
    try:
        with open(temporary, "xb", opener=_private if private else None) as stream:
            yield stream
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        (put or Path.replace)(temporary, path)
    finally:
        with suppress(OSError):  # gone, if all went well
            temporary.unlink()


def write_private(path: Path, text: str) -> None:
    """Write a file whole, into a directory that only its owner may look into; OSError, and nothing left, if not."""
    make_private(path.parent.parent)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with replacing(path, private=True) as stream:
        stream.write(text.encode())


def forget_abandoned(directory: Path, age: float = ABANDONED) -> None:
    """Remove what processes that were killed have left unfinished, `age` seconds ago or earlier.

    Only what has a name that `unfinished` gives: anything else in the directory is somebody's.
    """
    for entry in matching(directory, f".*{PARTIAL}"):
        if not _UNFINISHED.fullmatch(entry.name):
            continue
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime < age:
                continue
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
