"""The document of a saved conversation: JSON to its parts and back, with everything checked."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from types import NoneType
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from ayaedge.chat_file.saved_chat import FORMAT_VERSION, SavedChat, SavedImage, SavedState, SavedTurn
from ayaedge.checks import whole_number
from ayaedge.images.load import MAX_PIXELS
from ayaedge.manifest import MOST_TILES
from ayaedge.untrusted.json_text import parse_json

CHAT = "chat.json"


_STOP_REASONS = ("stop", "length", "cancelled")


_DIGEST = re.compile(r"[0-9a-f]{64}")


MOST_TEXT = 16_000_000
"""Bytes of chat.json: millions of words; what is parsed from them takes up to 30 times as many."""


_MOST_SIDE = 4096
"""Pixels of a tile's side."""


_MOST_WHOLE = 2**31 - 1


_TilesOf: TypeAlias = Callable[[str, int, int], NDArray[np.uint8]]
"""From SHA-256, count and side of tiles to the tiles."""


@dataclass(frozen=True)
class StateRecord:
    """What chat.json says about state.bin."""

    key: str
    count: int
    size: int
    sha256: str
    hmac: str = ""

    @classmethod
    def of(cls, state: SavedState, data: NDArray[np.uint8], secret: bytes) -> StateRecord:
        record = cls(state.key, state.count, data.nbytes, hashlib.sha256(data.data).hexdigest())
        return replace(record, hmac=record.expected(secret))

    def expected(self, secret: bytes) -> str:
        """The HMAC-SHA256 of key, count and data; the data by their size and SHA-256, which are checked apart."""
        message = f"ayaedge state 1\n{self.key}\n{self.count}\n{self.size}\n{self.sha256}\n"
        return hmac.new(secret, message.encode(), hashlib.sha256).hexdigest()


def to_json(chat: SavedChat, record: StateRecord | None) -> bytes:
    """The text of `chat.json`; ValueError for one that is too long."""
    turns = [
        {
            "question": turn.question,
            "pictures": [
                {
                    "sha256": image.sha256,
                    "tiles": len(image.tiles),
                    "tile_size": image.tiles.shape[1],
                    "size": list(image.size),
                    "facts": dict(image.facts),
                }
                for image in turn.images
            ],
            "answer": turn.answer,
            "ids": None if turn.ids is None else list(turn.ids),
            "stop_reason": turn.stop_reason,
        }
        for turn in chat.turns
    ]
    document = {
        "format_version": FORMAT_VERSION,
        "model": chat.model,
        "system": chat.system,
        "turns": turns,
        "state": asdict(record) if record else None,
    }
    return _encode(_lines(document) + "\n")


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text is not valid Unicode: {error.reason}") from None


def _lines(value: object, indent: str = "") -> str:
    """JSON for people: objects have a line for each entry, and lists of numbers (many) are one line."""
    deeper = f"{indent}  "
    if isinstance(value, dict) and value:
        if odd := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"the facts of images are named by text, not by {odd[0]!r}")
        parts = [f"{_lines(key)}: {_lines(item, deeper)}" for key, item in value.items()]
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        parts = [_lines(item, deeper) for item in value]
    else:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{deeper}" + f",\n{deeper}".join(parts) + f"\n{indent}{closing}"


def from_json(text: bytes, tiles_of: _TilesOf) -> tuple[SavedChat, StateRecord | None]:
    """The conversation of a chat.json, what it says about the state apart."""
    if len(text) > MOST_TEXT:
        raise ValueError(f"{CHAT} has {len(text)} bytes, more than {MOST_TEXT}")
    try:
        document = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{CHAT} is not JSON: {error}") from None
    version = _field(document, "format_version", int, CHAT)
    if version != FORMAT_VERSION:
        reason = "was written by a newer ayaedge: update it" if version > FORMAT_VERSION else "is not known"
        raise ValueError(f"its format version {version} {reason}; this ayaedge reads {FORMAT_VERSION}")
    state = _field(document, "state", (dict, NoneType), CHAT)
    turns = _field(document, "turns", list, CHAT)
    chat = SavedChat(
        model=_field(document, "model", str, CHAT),
        system=_field(document, "system", (str, NoneType), CHAT),
        turns=tuple(_turn(turn, f"turn {number}", tiles_of) for number, turn in enumerate(turns, 1)),
    )
    return chat, None if state is None else _state_record(state)


def _turn(data: object, where: str, tiles_of: _TilesOf) -> SavedTurn:
    ids = _field(data, "ids", (list, NoneType), where)
    reason = _field(data, "stop_reason", str, where)
    if reason not in _STOP_REASONS:
        raise ValueError(f"stop_reason of {where} must be one of {_STOP_REASONS}, not {reason[:40]!r}")
    images = enumerate(_field(data, "pictures", list, where), 1)
    return SavedTurn(
        question=_field(data, "question", str, where),
        images=tuple(_image(one, f"{where}, image {number}", tiles_of) for number, one in images),
        answer=_field(data, "answer", str, where),
        ids=None if ids is None else tuple(_whole(token, f"a token of {where}") for token in ids),
        stop_reason=reason,
    )


def _image(data: object, where: str, tiles_of: _TilesOf) -> SavedImage:
    sha256 = _digest(data, "sha256", where)
    count = _whole(_field(data, "tiles", int, where), f"tiles of {where}", 1, MOST_TILES + 1)
    side = _whole(_field(data, "tile_size", int, where), f"tile_size of {where}", 1, _MOST_SIDE)
    if count * side**2 > MAX_PIXELS:
        raise ValueError(f"{where} has {count * side**2} pixels in its tiles, more than {MAX_PIXELS}")
    size = _field(data, "size", list, where)
    if len(size) != 2:
        raise ValueError(f"{where} has a size of {len(size)} numbers instead of width and height")
    width, height = (_whole(pixels, f"size of {where}", 1) for pixels in size)
    tiles = tiles_of(sha256, count, side)
    if tiles.shape != (count, side, side, 3):
        raise ValueError(f"{where} is said to have {count} tiles of {side} pixels; they are {tiles.shape}")
    return SavedImage(sha256, tiles, (width, height), _field(data, "facts", dict, where))


def _state_record(data: object) -> StateRecord:
    where = "state"
    return StateRecord(
        key=_digest(data, "key", where),
        count=_whole(_field(data, "count", int, where), "count of state"),
        size=_whole(_field(data, "size", int, where), "size of state", most=2**63 - 1),
        sha256=_digest(data, "sha256", where),
        hmac=_digest(data, "hmac", where),
    )


def _field(data: object, name: str, kinds: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(data, dict) or name not in data:
        raise ValueError(f"{where} has no {name}")
    value = data[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ValueError(f"{name} of {where} has the wrong type: {type(value).__name__}")
    return value


def _digest(data: object, name: str, where: str) -> str:
    value: str = _field(data, name, str, where)
    if not _DIGEST.fullmatch(value):
        raise ValueError(f"{name} of {where} is not a SHA-256 of 64 hexadecimal digits")
    return value


def _whole(value: object, what: str, least: int = 0, most: int = _MOST_WHOLE) -> int:
    if fault := whole_number(what, value, least=least, most=most):
        raise ValueError(fault)
    return cast("int", value)
