"""The bytes of an image's file, from wherever they are: paths, URLs of files, data URLs, bytes, open files.

Nothing is fetched from a network, and nothing is decoded.
"""

from __future__ import annotations

import base64
import inspect
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, unquote_to_bytes

from ayaedge.errors import ImageError
from ayaedge.images.formats import foreign_kind


class BinaryFile(Protocol):
    """An open file; BytesIO is one too."""

    def read(self, size: int = ..., /) -> bytes:
        """The next bytes, `size` at most; none at the end."""
        ...


MAX_FILE_BYTES = 1 << 30
"""Largest file that is read: more than the largest image takes without any compression."""
_SHOWN, _SHOWN_OF_PATH = 60, 400
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DRIVE = re.compile(r"/?([A-Za-z])[:|](/.*)", re.DOTALL)
_BASE64_OF_IMAGE = re.compile(r"(?:iVBORw0KGgo|/9j/4|R0lGOD|UklGR|JVBERi0)[\w+/-]{40}")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def read_file(image: str | os.PathLike[str]) -> bytes:
    """The bytes of an image that is named by a path or a URL; ImageError if there are none."""
    return file_of(image)[0]


def file_url_path(url: str, *, windows: bool = os.name == "nt") -> str | None:
    """The path that a `file:` URL names, or None if it is relative or, except on Windows, of another computer.

    Percent-encoded bytes are those of the file's name. `?` and `#` are taken as parts of the name: images in files
    have neither queries nor fragments, and those who put a path behind `file://` seldom encode them.
    """
    rest = url[len("file:") :]
    if windows:
        rest = rest.replace("\\", "/")
    host, path = "", rest
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        path = slash + path
    host, path = (unquote(part, errors="surrogateescape") for part in (host, path))
    if windows and (drive := _DRIVE.fullmatch(host + path)):
        return f"{drive[1]}:{drive[2]}"
    if not path.startswith("/"):
        return None
    if host.lower() in ("", "localhost"):
        return path
    return f"//{host}{path}" if windows else None


def file_of(image: Any) -> tuple[bytes, str]:
    """The bytes of an image's file, and what to call it."""
    if isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes_of(image)
        return data, f"the image of {len(data)} bytes"
    if isinstance(image, str) and is_url(image):
        return _of_url(image.strip())
    if isinstance(image, str) and not image:
        raise ImageError("the path of an image is empty")
    if isinstance(image, TakenPath):
        return _read_path(image.path, image.given), image.given
    if isinstance(image, (str, os.PathLike)):
        try:
            path = os.fsdecode(image)
        except TypeError:  # of a PathLike that gives something else
            raise ImageError(_no_image(image)) from None
        return _read_path(Path(path), path), path
    if is_open_file(image):
        return read_open_file(image), "the open file"
    raise ImageError(_no_image(image))


def _no_image(image: object) -> str:
    return (
        "an image is a path, bytes, an open file, a PIL image, an array, a data URL or a file URL, "
        f"not {type(image).__name__}"
    )


def is_url(text: object) -> bool:
    """Whether a name is that of a data URL, or of anything else that has a scheme."""
    if not isinstance(text, str):
        return False
    start = text.lstrip()
    return start[:5].lower() in ("data:", "file:") or _SCHEME.match(start) is not None


def _of_url(url: str) -> tuple[bytes, str]:
    scheme = url[:5].lower()
    if scheme == "data:":
        return _data_url(url), f"the data URL {shorten(url)}"
    if scheme != "file:":
        raise ImageError(f"{shorten(url)} is a URL; ayaedge works offline: give the path of a file")
    path = file_url_path(url)
    if path is None:
        raise ImageError(f"{shorten(url)} is not of the form file:///path/of/an/image")
    return _read_path(Path(path), path), path


@dataclass(frozen=True)
class TakenPath:
    """A path that leads to the same file whatever becomes the current directory."""

    given: str
    """What it is called."""
    path: Path


def take_path(path: str | os.PathLike[str]) -> str | os.PathLike[str] | TakenPath:
    """A path that does not depend on the current directory; as it is if it is none, which is said when it is read."""
    try:
        given = os.fsdecode(path)
        return TakenPath(given, Path(given).absolute()) if given else path
    except (TypeError, OSError):
        return path


def bytes_of(buffer: bytes | bytearray | memoryview) -> bytes:
    """A copy of a buffer; ImageError for one that was released."""
    try:
        return bytes(buffer)
    except ValueError as error:  # a view that was released
        raise ImageError(f"the image's bytes cannot be read: {error}") from None


def is_open_file(image: object) -> bool:
    """Whether something can be read from."""
    return callable(getattr(image, "read", None))


def read_open_file(file: Any) -> bytes:
    """The whole file, whose position is not changed if it can be rewound."""
    name = getattr(file, "name", None)
    what = f"the open file {shorten(name)}" if isinstance(name, str) else "the open file"
    try:
        place = file.tell() if _can_be_rewound(file) else None
        if place is not None:
            file.seek(0)
        try:
            return _read_all(file, what)
        finally:
            if place is not None:
                file.seek(place)
    except ImageError:
        raise
    except Exception as error:  # of whatever stands behind it
        raise ImageError(f"{what} cannot be read: {error}") from error


def _can_be_rewound(file: Any) -> bool:
    seekable = getattr(file, "seekable", None)
    return bool(seekable()) if callable(seekable) else hasattr(file, "seek")


def _read_all(file: Any, what: str) -> bytes:
    parts, size = [], 0
    while part := file.read(MAX_FILE_BYTES + 1 - size):
        if inspect.iscoroutine(part):
            part.close()
            raise ImageError(f"{what} is read by waiting: give the bytes, await file.read()")
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise ImageError(f"{what} gives {type(part).__name__}, not bytes: open it with mode 'rb'")
        parts.append(bytes(part))
        size += len(parts[-1])
        if size > MAX_FILE_BYTES:
            raise ImageError(f"{what} has more than the {MAX_FILE_BYTES} bytes that an image may have")
    return b"".join(parts)


def _read_path(path: Path, name: str) -> bytes:
    shown = shorten(name, _SHOWN_OF_PATH)
    if _BASE64_OF_IMAGE.match(name):
        shown += " (if this is base64, write data:image/png;base64, before it)"
    try:
        kind = path.stat()
        if stat.S_ISDIR(kind.st_mode):
            raise ImageError(f"{shown} is a directory, not an image")
        if not stat.S_ISREG(kind.st_mode):  # a pipe or a device may never end
            raise ImageError(f"{shown} is not a file")
        if kind.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{shown} has {kind.st_size} bytes, more than an image of {MAX_FILE_BYTES} may have"
            )
        return path.read_bytes()
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"there is no image at {shown}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{shown} cannot be read: {reason}") from error


def _data_url(url: str) -> bytes:
    """Read as browsers do: blanks and missing padding are no fault, and the alphabet for URLs is known too."""
    header, comma, payload = url.partition(",")
    try:
        data = unquote_to_bytes(payload.encode("ascii")) if "%" in payload else payload.encode("ascii")
        if not comma or header.rpartition(";")[2].strip().lower() != "base64":
            kind = foreign_kind(data)
            raise ImageError(
                f"the data URL {shorten(url)} is " + (kind or "not of the form data:image/...;base64,...")
            )
        data = data.translate(_URL_SAFE, b" \t\r\n\f\v").rstrip(b"=")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except ImageError:
        raise
    except ValueError as error:  # binascii.Error, or characters that are not ASCII
        raise ImageError(f"the data URL {shorten(url)} is not valid base64: {error}") from None


def shorten(text: str, longest: int = _SHOWN) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= longest else text[:longest] + "..."
