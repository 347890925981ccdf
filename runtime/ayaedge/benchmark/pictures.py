"""The pictures of a data set's rows: within the table, next to it, or in its archive."""

from __future__ import annotations

import zipfile
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ayaedge.errors import InvalidOptionError
from ayaedge.images.sources import MAX_FILE_BYTES
from ayaedge.untrusted.regular_file import read_regular

ARCHIVE = "data.zip"
_INNER = "final_data"
"""The folder that Kaleidoscope's archive has everything in."""
_NONE = ("", "none", "nan", "null")
"""What tables write where a row has no picture."""


class Pictures:
    """Finds pictures below a directory, unpacked or not."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, value: Any, place: str) -> tuple[bytes, ...]:
        """The files of a cell's pictures: a list or one, bytes, bytes with a path, or a path.

        InvalidOptionError for what is none, and for paths that lead nowhere or out of the directory.
        """
        if isinstance(value, (list, tuple)):
            return tuple(data for one in value for data in self.read(one, place))
        if isinstance(value, dict):
            data = value.get("bytes")
            return self.read(value.get("path") if data is None else data, place)
        if isinstance(value, bytes):
            return (value,)
        if value is None or (isinstance(value, str) and value.strip().lower() in _NONE):
            return ()
        if isinstance(value, str):
            return (self._named(value, place),)
        raise InvalidOptionError(f"{place} has a picture of the type {type(value).__name__}")

    def _named(self, name: str, place: str) -> bytes:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
            raise InvalidOptionError(f"{place} names a picture outside of its data set: {name!r}")
        for root in (self._directory, self._directory / _INNER):
            if (root / path).is_file():
                return read_regular(root / path, most_bytes=MAX_FILE_BYTES)
        if self._archive is not None:
            for member in (f"{_INNER}/{path}", str(path)):
                if member in self._archive.NameToInfo:
                    return self._member(member, place)
        raise InvalidOptionError(
            f"{place} names the picture {name}, which is neither below {self._directory} nor in its {ARCHIVE}: "
            "download that file as well"
        )

    def _member(self, name: str, place: str) -> bytes:
        assert self._archive is not None
        if self._archive.getinfo(name).file_size > MAX_FILE_BYTES:
            raise InvalidOptionError(f"{place} names a picture of more than {MAX_FILE_BYTES} bytes: {name}")
        try:
            return self._archive.read(name)
        except (zipfile.BadZipFile, OSError, RuntimeError) as error:
            raise InvalidOptionError(f"{name} in {ARCHIVE} is damaged: {error}") from None

    @cached_property
    def _archive(self) -> zipfile.ZipFile | None:
        path = self._directory / ARCHIVE
        if not path.is_file():
            return None
        try:
            return zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise InvalidOptionError(f"{path} is damaged: {error}") from None

    def close(self) -> None:
        """Close the archive, if it was opened."""
        if archive := self.__dict__.pop("_archive", None):
            archive.close()
