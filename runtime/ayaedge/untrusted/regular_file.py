"""Regular files alone, whatever lies under a name: a pipe or a device neither makes a reader wait nor fills memory."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO, NamedTuple

_AT_ONCE = getattr(os, "O_NONBLOCK", 0)
"""Opening a pipe does not wait for its other end."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class Stamp(NamedTuple):
    """What tells of a file whether it is still the same: where it is, its size and its last changes."""

    device: int
    inode: int
    size: int
    """Bytes."""
    modified: int
    """When its content was changed, nanoseconds since 1970; anybody may set it back."""
    changed: int
    """When anything of it was changed, which nobody can set back; on Windows when it was made."""


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of an open file: `os.fstat`, since `os.stat` gives other numbers on some systems."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def open_regular(path: Path, *, links: bool = True) -> BinaryIO:
    """Open a file to read it, unbuffered; ValueError if it is no regular file, OSError as `open`.

    Without `links` a symbolic link is refused where the system can, as an OSError.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | _AT_ONCE | (0 if links else _NO_LINK))

    try:
        stream = open(path, "rb", buffering=0, opener=opener)  # noqa: SIM115  the caller closes it
    except IsADirectoryError:
        raise ValueError("it is a directory") from None
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise ValueError("it is not a regular file")
    return stream


def read_regular(path: Path, *, most_bytes: int, links: bool = True) -> bytes:
    """The bytes of a file; ValueError if there are more than `most_bytes`, otherwise as `open_regular`."""
    with open_regular(path, links=links) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most_bytes:
            raise ValueError(f"it has {size} bytes, more than {most_bytes}")
        content = bytearray()
        while len(content) <= most_bytes and (chunk := stream.read(most_bytes + 1 - len(content))):
            content += chunk
    if len(content) > most_bytes:
        raise ValueError(f"it has more than {most_bytes} bytes")
    return bytes(content)
