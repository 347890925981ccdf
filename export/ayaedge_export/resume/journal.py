"""What of a bundle is finished: kept next to its files, so that an export that was interrupted goes on from there."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from ayaedge.files import replacing
from ayaedge.untrusted.json_text import parse_json
from ayaedge.untrusted.regular_file import read_regular

_CHUNK = 1 << 20
_MOST_BYTES = 1 << 24
"""Of the journal: a line for each tensor."""


@dataclass(frozen=True)
class Piece:
    """A part of a file that was written to its end: a tensor with its padding, a header, or a whole file."""

    file: str
    name: str
    nbytes: int
    crc32: int

    def is_one(self) -> bool:
        """Whether the values, read from a file, are of their types."""
        numbers = (self.nbytes, self.crc32)
        return isinstance(self.file, str) and all(type(value) is int and value >= 0 for value in numbers)


class Journal:
    """The finished pieces of the files in `directory`, in the order in which they were written.

    Kept in the file `path`: one JSON line with the export's fingerprint, then one for each piece. An earlier run's
    pieces count if the fingerprint is the same, and up to the first one whose bytes are not what was written.
    Nothing is changed before `begin`. OSError if a file cannot be read or written.
    """

    def __init__(self, path: Path, directory: Path, fingerprint: str, *, resume: bool = True) -> None:
        self.directory = directory
        self.pieces = list(_intact(directory, _read(path, fingerprint))) if resume else []
        self.begun = False
        self._path, self.fingerprint = path, fingerprint

    def begin(self) -> None:
        """Remove from `directory` whatever is not in a finished piece; pieces can be added from now on."""
        finished = {piece.file for piece in self.pieces}
        if self.directory.exists():
            for path in self.directory.iterdir():
                if path.name in finished:
                    os.truncate(path, sum(piece.nbytes for piece in self.of(path.name)))
                else:
                    path.unlink()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._rewrite()
        self.begun = True

    def forget(self, *files: str) -> None:
        """Take back all pieces of these files, which will be written anew."""
        self.pieces = [piece for piece in self.pieces if piece.file not in files]
        self._rewrite()

    def keep(self, file: str, count: int) -> None:
        """Take back all but the first `count` pieces of this file, which will be written anew."""
        first = {id(piece) for piece in self.of(file)[:count]}
        self.pieces = [piece for piece in self.pieces if piece.file != file or id(piece) in first]
        self._rewrite()

    def _rewrite(self) -> None:
        lines = [json.dumps({"fingerprint": self.fingerprint}), *map(_line, self.pieces)]
        with replacing(self._path, private=True) as stream:
            stream.write(("\n".join(lines) + "\n").encode())

    def of(self, file: str) -> list[Piece]:
        """The finished pieces of one file, which are its beginning."""
        return [piece for piece in self.pieces if piece.file == file]

    @property
    def present_bytes(self) -> int:
        """Bytes in `directory`, all of which serve this export or are removed by `begin`."""
        return sum(path.stat().st_size for path in self.directory.glob("*"))

    def add(self, file: str, name: str, nbytes: int, crc32: int) -> None:
        """Note that the next piece of `file` stands in it, flushed."""
        piece = Piece(file, name, nbytes, crc32)
        self.pieces.append(piece)
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(_line(piece) + "\n")

    def add_file(self, file: str) -> None:
        """Note that a whole file is finished."""
        size = (self.directory / file).stat().st_size
        with (self.directory / file).open("rb") as stream:
            crc32 = _checksum(stream, size)
        assert crc32 is not None
        self.add(file, file, size, crc32)


def has_pieces(path: Path) -> bool:
    """Whether the file `path` is a journal that names a finished piece."""
    try:
        return len(_lines(path)) > 1
    except (OSError, ValueError):
        return False


def _lines(path: Path) -> list[bytes]:
    """The lines of a journal; ValueError for what is none, OSError if it cannot be read."""
    return read_regular(path, most_bytes=_MOST_BYTES, links=False).splitlines()


def _line(piece: Piece) -> str:
    return json.dumps(asdict(piece))


def _read(path: Path, fingerprint: str) -> list[Piece]:
    """The pieces that the journal at `path` names; none if it belongs to another export."""
    try:
        lines = _lines(path)
        if parse_json(lines[0]) != {"fingerprint": fingerprint}:
            return []
    except (FileNotFoundError, ValueError, IndexError):
        return []
    pieces = []
    for line in lines[1:]:
        try:
            piece = Piece(**parse_json(line))
        except (ValueError, TypeError):  # the last line, torn
            break
        if not piece.is_one():
            break
        pieces.append(piece)
    return pieces


def _intact(directory: Path, pieces: list[Piece]) -> Iterator[Piece]:
    """Those of `pieces` that are there, up to the first that is not."""
    for file, group in groupby(pieces, key=lambda piece: piece.file):
        try:
            with (directory / file).open("rb") as stream:
                for piece in group:
                    if _checksum(stream, piece.nbytes) != piece.crc32:
                        return
                    yield piece
        except FileNotFoundError:
            return


def _checksum(stream: BinaryIO, nbytes: int) -> int | None:
    """CRC-32 of the next bytes; None if there are fewer."""
    crc = 0
    while nbytes > 0:
        chunk = stream.read(min(_CHUNK, nbytes))
        if not chunk:
            return None
        crc = zlib.crc32(chunk, crc)
        nbytes -= len(chunk)
    return crc
