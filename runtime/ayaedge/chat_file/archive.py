"""A conversation as one file, to be continued later, elsewhere, or with another model.

    trip.ayachat             a zip archive in which nothing is compressed
      chat.json              who said what, for people and programs
      pictures/<sha256>.png  tiles of an image, one below the other; an image that was shown twice is there once
      state.bin              what the decoder had computed, if it was saved

Knows files and their content, not the model: what an image's facts mean and which state belongs where is decided in
`ayaedge.conversation`. A file may come from anywhere: everything in it is checked, sizes before anything is read, and
nothing is ever unpacked to the disk. llama.cpp trusts the states that it is given, so a state is only handed out if
this user's own installation wrote it, which an HMAC shows; else it is left out, and has to be computed again.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import logging
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from ayaedge.chat_file.document import CHAT, MOST_TEXT, StateRecord, from_json, to_json
from ayaedge.chat_file.saved_chat import SavedChat, SavedImage, SavedState, tiles_sha256
from ayaedge.errors import ChatFileError
from ayaedge.files import replacing
from ayaedge.untrusted.regular_file import open_regular

logger = logging.getLogger(__name__)

_STATE, _IMAGE = "state.bin", "pictures/{}.png"
_WRITTEN = (1980, 1, 1, 0, 0, 0)
"""Time of all members: equal conversations give equal files."""

_MOST_IMAGE_BYTES = 1 << 32
"""Of all images' tiles together, which a small file could claim to hold."""
_CHUNK = 1 << 22
"""Bytes that are read or written at once."""
_MOST_LIST = 1 << 20
"""Bytes of the list of the archive's members: of some 9000 images."""
_MOST_RATIO, _SMALL = 300, 1 << 20
"""Bytes of an image's tiles for each byte of its PNG, and how many need no such look; ayaedge's own reach 230."""
_COMPRESSION = 1
"""Of PNG: half the seconds of the default for a seventh more bytes, measured with a noisy image."""
_ENCRYPTED = 0x1


_DAMAGE = (
    zipfile.BadZipFile,
    ValueError,  # also text that is no Unicode, and JSON
    RuntimeError,  # also what zipfile does not support, and JSON that is nested too deeply
    EOFError,
    OverflowError,
    SyntaxError,  # Pillow's, of a broken PNG
    struct.error,
    zlib.error,
)
"""What the libraries and this module raise for a file that is not as it should be."""


def write_chat(path: Path, chat: SavedChat, secret: bytes | None) -> None:
    """Write a conversation to a file that only this user may read; whatever is there is replaced at the end.

    Without a secret the state is left out. Raises ChatFileError for a conversation that could not be read again and
    for whatever the system refuses; the file is then as it was.
    """
    path, record, data = Path(path), None, np.empty(0, np.uint8)
    try:
        if chat.state is not None and secret is not None:
            data = _bytes_of(chat.state.data)
            record = StateRecord.of(chat.state, data, secret)
        images = {one.sha256: one.tiles for turn in chat.turns for one in turn.images}
        _check_images(images)
        text = to_json(chat, record)
        from_json(text, lambda sha256, _count, _side: images[sha256])  # what is written can be read
        _check_place(path)
        with replacing(path, private=True, sync=True) as stream, zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(_member(CHAT), text)
            for sha256, tiles in images.items():
                archive.writestr(_member(_IMAGE.format(sha256)), _png_of(tiles))
            if record is not None:
                with archive.open(_member(_STATE), "w", force_zip64=True) as target:
                    for start in range(0, data.nbytes, _CHUNK):
                        target.write(data[start : start + _CHUNK].data)
    except OSError as error:
        raise ChatFileError(f"the conversation cannot be saved as {path}: {_reason(error)}") from error
    except (*_DAMAGE, TypeError) as error:
        raise ChatFileError(f"the conversation cannot be saved as {path}: {error}") from error


def read_chat(
    path: Path,
    secret: bytes | None,
    *,
    wants_state: Callable[[str], bool] = lambda _key: True,
    check: Callable[[SavedChat], object] = lambda _chat: None,
) -> SavedChat:
    """Read a conversation; ChatFileError says what is wrong with a file that is not one, or not whole.

    `wants_state` is asked, with the key, whether a state should be read. A state that was not written with this
    secret, or is damaged, is left out with a message logged. `check` gets the conversation before any image is
    decoded, with tiles that are all black and take no memory; what it raises is raised here.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with _Reader(cast("Any", open_regular(path))) as stream, zipfile.ZipFile(stream) as archive:
            stream.most = _CHUNK
            members = _members(archive, os.fstat(stream.fileno()).st_size)
            if CHAT not in members:
                raise ValueError(f"it holds no {CHAT}")
            claims = _Claims(members)
            text = _content(archive, members[CHAT], MOST_TEXT).tobytes()
            chat, record = from_json(text, claims)
            expected = {CHAT, *claims.names, *([_STATE] if record else [])}
            if missing := expected - members.keys():
                raise ValueError(f"it holds no {missing.pop()}")
            if odd := members.keys() - expected:
                raise ValueError(f"it holds {odd.pop()[:100]!r}, which belongs to no conversation")
            check(chat)
            chat = _with_tiles(chat, archive, members)
            if record is None or not _is_ours(record, secret, path) or not wants_state(record.key):
                return chat
            return replace(chat, state=_read_state(archive, members[_STATE], record, path))
    except ChatFileError:
        raise
    except FileNotFoundError:
        raise ChatFileError(f"there is no conversation at {path}") from None
    except OSError as error:
        raise ChatFileError(f"the conversation {path} cannot be read: {_reason(error)}") from error
    except MemoryError:
        raise ChatFileError(f"the conversation {path} is too large for the memory that is free") from None
    except _DAMAGE as error:
        raise ChatFileError(f"the conversation {path} cannot be read: {error}") from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


class _Reader(io.BufferedReader):
    """A file from which nothing large is read at once: zipfile reads the list of members whole."""

    most = _MOST_LIST

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.most:
            raise ValueError(f"{size} bytes are too many at once")
        return super().read(size)


def _members(archive: zipfile.ZipFile, file_size: int) -> dict[str, zipfile.ZipInfo]:
    """All members by name; together they are not larger than the file, so nothing is there twice."""
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise ValueError("two of its members have the same name")
    if sum(info.file_size for info in members.values()) > file_size:
        raise ValueError("its members are larger than the file: it is compressed, or damaged")
    return members


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int | None = None) -> NDArray[np.uint8]:
    """A member's bytes, read into one array; zipfile checks their CRC."""
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{info.filename} is compressed")
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{info.filename} is encrypted")
    if most is not None and info.file_size > most:
        raise ValueError(f"{info.filename} has {info.file_size} bytes, more than {most}")
    content, place = np.empty(info.file_size, np.uint8), 0
    with archive.open(info) as stream:
        while chunk := stream.read(_CHUNK):
            content[place : place + len(chunk)] = np.frombuffer(chunk, np.uint8)
            place += len(chunk)
    if place != len(content):
        raise ValueError(f"{info.filename} ends after {place} of {len(content)} bytes")
    return content


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _WRITTEN)
    info.create_system, info.external_attr = 3, 0o600 << 16
    return info


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise ValueError("this is a directory; give the name of a file in it")
    if not path.parent.is_dir():
        raise ValueError(f"there is no directory {path.parent}")


class _Claims:
    """Images as a document says that they are: compared with the archive's members, and none decoded."""

    def __init__(self, members: Mapping[str, zipfile.ZipInfo]) -> None:
        self._members, self._bytes = members, 0
        self._tiles: dict[str, NDArray[np.uint8]] = {}

    @property
    def names(self) -> set[str]:
        """The members that were asked for."""
        return {_IMAGE.format(sha256) for sha256 in self._tiles}

    def __call__(self, sha256: str, count: int, side: int) -> NDArray[np.uint8]:
        name, size = _IMAGE.format(sha256), count * side**2 * 3
        if sha256 not in self._tiles:
            self._bytes += size
            if self._bytes > _MOST_IMAGE_BYTES:
                raise ValueError(f"its images have more than {_MOST_IMAGE_BYTES} bytes")
            if name not in self._members:
                raise ValueError(f"it holds no {name}")
            if size > max(_SMALL, _MOST_RATIO * self._members[name].file_size):
                raise ValueError(f"{name} is {_no_png(side, count)}: it is far too small")
            self._tiles[sha256] = np.broadcast_to(np.uint8(0), (count, side, side, 3))
        return self._tiles[sha256]


def _with_tiles(
    chat: SavedChat, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> SavedChat:
    """The conversation with its images, each decoded once."""
    decoded: dict[str, NDArray[np.uint8]] = {}

    def filled(image: SavedImage) -> SavedImage:
        if image.sha256 not in decoded:
            decoded[image.sha256] = _decoded(image, archive, members)
        return replace(image, tiles=decoded[image.sha256])

    turns = (replace(turn, images=tuple(map(filled, turn.images))) for turn in chat.turns)
    return replace(chat, turns=tuple(turns))


def _decoded(
    image: SavedImage, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]
) -> NDArray[np.uint8]:
    name, (count, side) = _IMAGE.format(image.sha256), image.tiles.shape[:2]
    tiles = _tiles_of(_content(archive, members[name]), count, side, name)
    if tiles_sha256(tiles) != image.sha256:
        raise ValueError(f"{name} shows something else: its SHA-256 differs")
    return tiles


def _check_images(images: Mapping[str, NDArray[np.uint8]]) -> None:
    for sha256, tiles in images.items():
        shape = tiles.shape
        if tiles.dtype != np.uint8 or len(shape) != 4 or shape[1:] != (shape[1], shape[1], 3):
            raise ValueError(f"tiles are uint8 of shape (n, S, S, 3), not {tiles.dtype} of shape {shape}")
        if tiles_sha256(tiles) != sha256:
            raise ValueError(f"the SHA-256 of an image is not {sha256}")
    if sum(tiles.nbytes for tiles in images.values()) > _MOST_IMAGE_BYTES:
        raise ValueError(f"its images have more than {_MOST_IMAGE_BYTES} bytes")


def _png_of(tiles: NDArray[np.uint8]) -> bytes:
    count, side = tiles.shape[:2]
    target = io.BytesIO()
    Image.fromarray(tiles.reshape(count * side, side, 3)).save(target, "PNG", compress_level=_COMPRESSION)
    return target.getvalue()  # no copy; a view of the buffer that an error keeps alive has ended Python 3.12


def _tiles_of(content: NDArray[np.uint8], count: int, side: int, name: str) -> NDArray[np.uint8]:
    """Tiles (n, S, S, 3) from a PNG; one of another size, or with anything but pixels, is not even opened."""
    if not _is_plain_png(content.data, side, count * side):
        raise ValueError(f"{name} is {_no_png(side, count)}")
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(content.data)) as image:
            return np.asarray(image).reshape(count, side, side, 3)
    except (OSError, MemoryError) as error:  # OSError: Pillow's for damage; there is no file behind this
        raise ValueError(f"{name} is damaged, or too large: {error}") from error


def _no_png(side: int, count: int) -> str:
    return f"not a PNG of {side} x {count * side} pixels as ayaedge writes them"


def _is_plain_png(content: memoryview, width: int, height: int) -> bool:
    """Whether it begins with the header of an RGB image of this size, and all else is pixels and the end."""
    signature = b"\x89PNG\r\n\x1a\n"
    header = signature + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0)
    if bytes(content[: len(header)]) != header:
        return False
    place, kind = len(header) + 4, b""  # behind the header's CRC
    while place + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        place += 12 + length
        if kind != b"IDAT":
            break
    return kind == b"IEND" and place == len(content)


def _bytes_of(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"a state is uint8 of shape (bytes,), not {data.dtype} of shape {data.shape}")
    return np.ascontiguousarray(data)


def _is_ours(record: StateRecord, secret: bytes | None, path: Path) -> bool:
    if secret is not None and hmac.compare_digest(record.expected(secret), record.hmac):
        return True
    logger.warning(
        "what was computed for %s was not saved by this user on this machine: it is not used, but computed again",
        path,
    )
    return False


def _read_state(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, record: StateRecord, path: Path
) -> SavedState | None:
    try:
        data = _content(archive, info, record.size)
        if hashlib.sha256(data.data).hexdigest() == record.sha256:
            return SavedState(record.key, record.count, data)
        reason = "its SHA-256 differs"
    except (*_DAMAGE, MemoryError) as error:
        reason = str(error)
    logger.warning("what was computed for %s cannot be used, and is computed again: %s", path, reason)
    return None
