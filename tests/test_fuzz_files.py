"""Spoilt images and saved conversations: read alike or refused in a sentence, soon, and never half.

The ordinary run takes the same few hundred of each; `pytest -m slow tests/test_fuzz_files.py` takes ten thousand.
"""

from __future__ import annotations

import io
import json
import random
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ayaedge import AyaEdgeError, ChatFileError, ImageError
from ayaedge.chat_file.archive import read_chat, write_chat
from ayaedge.chat_file.saved_chat import SavedChat, SavedImage, SavedState, SavedTurn
from ayaedge.errors import printable
from ayaedge.images.load import image_size, load_image

FEW, MANY = 250, 10_000
SECRET = bytes(32)
SLOWEST = 20.0
"""Seconds of one file's work; the largest that are decoded take a third on a machine of two processors."""
NUMBERS = [0, 1, 2, 3, 7, 255, 256, 1000, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**19, 10**400, "", "\x1b]52;c;x\x07", "x" * 5000, [], {}, [[]], {"a": None}, "stop",
    json.loads("[" * 70 + "]" * 70), 4096, 2**31,
]  # fmt: skip


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _files() -> list[bytes]:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [
        _saved(picture, "PNG", exif=exif), _saved(picture.convert("P"), "PNG", transparency=1),
        _saved(picture, "JPEG", progressive=True, exif=exif, comment=b"x"), _saved(picture, "GIF", comment=b"hello"),
        _saved(picture, "TIFF"), _saved(picture, "TIFF", compression="jpeg"), _saved(picture, "TIFF", exif=exif),
        _saved(picture, "BMP"), _saved(picture, "ICO"), _saved(picture.resize((128, 128)), "ICNS"),
        _saved(picture, "PPM"), _saved(picture, "TGA"), _saved(picture, "WEBP", exif=exif),
        b"P3 # by hand\n2 2\n255\n" + b"7 7 7\n" * 4, b"qoif" + struct.pack(">IIBB", 4, 4, 3, 0) + b"\xcf" + bytes(8),
        b"BM" + struct.pack("<IHHI", 1090, 0, 0, 1078)
        + struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 8, 1, 12, 0, 0, 256, 0) + bytes(1024) + b"\4\7\0\0" * 4,
    ]  # fmt: skip
    for form, options in ("JPEG2000", {"tile_size": (32, 32)}), ("JPEG2000", {"no_jp2": True}), ("AVIF", {}):
        try:
            files.append(_saved(picture, form, **options))
        except (OSError, KeyError):  # this build of Pillow cannot
            continue
    return files


FILES = _files()


def spoilt(chance: random.Random, data: bytes) -> bytes:
    """A file with numbers replaced, parts repeated, left out or put elsewhere, or bits turned over."""
    for _ in range(chance.choice([1, 1, 2, 4])):
        place, length = chance.randrange(len(data) + 1), chance.choice([1, 2, 4, 8, 12, 16, 40])
        before, part, after = data[:place], data[place : place + length], data[place + length :]
        number = struct.pack(chance.choice("<>") + chance.choice("HI"), chance.choice(NUMBERS) & 0xFFFF)
        data = {
            "number": lambda b=before, n=number, d=data, p=place: b + n + d[p + len(n) :],
            "repeat": lambda b=before, p=part, a=after: b + p * chance.choice([2, 100, 3000]) + a,
            "drop": lambda b=before, a=after: b + a,
            "end": lambda b=before: b or b"\0",
            "flip": lambda b=before, p=part, a=after: (
                b + bytes(byte ^ 1 << chance.randrange(8) for byte in p) + a
            ),
            "move": lambda b=before, p=part, a=after: (b + a)[: chance.randrange(len(b + a) + 1)] + p + a,
        }[chance.choice(["number", "number", "repeat", "drop", "end", "flip", "flip", "move"])]()  # type: ignore[no-untyped-call]
    return data


def checked(error: AyaEdgeError) -> None:
    message = str(error)
    assert message.strip()
    assert len(message) < 3000
    assert printable(message) == message


def look(data: bytes) -> bool:
    """Whether it is an image; its size is told alike with and without decoding it."""
    started = time.process_time()
    try:
        shape = load_image(data).shape
    except ImageError as error:
        checked(error)
        return False
    finally:
        assert time.process_time() - started < SLOWEST
    assert image_size(data) == shape[1::-1]
    return True


def look_at_images(numbers: range) -> None:
    found = 0
    for number in numbers:
        chance = random.Random(number)
        found += look(spoilt(chance, chance.choice(FILES)))
    assert 0 < found < len(numbers)


@pytest.mark.filterwarnings("ignore")
def test_a_spoilt_image_is_read_or_refused() -> None:
    assert all(map(look, FILES))
    look_at_images(range(FEW))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ten_thousand_spoilt_images_are_read_or_refused() -> None:
    look_at_images(range(FEW, FEW + MANY))


def spoilt_value(chance: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        kept = {key: inner for key, inner in value.items() if key != name or chance.random() < 0.8}
        return {**kept, name: spoilt_value(chance, value[name])} if name in kept else kept
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        return [*value[:place], spoilt_value(chance, value[place]), *value[place + chance.randrange(2) :]]
    return chance.choice(VALUES)


def spoilt_chat(chance: random.Random, data: bytes) -> bytes:
    """The same archive with a spoilt text or image, so that its checksums hold; or the file itself spoilt."""
    if chance.random() < 0.3:
        return spoilt(chance, data)
    target = io.BytesIO()
    chosen = chance.choice(["chat.json", "chat.json", ".png", "state.bin"])
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if name == chosen == "chat.json":
                content = json.dumps(spoilt_value(chance, json.loads(content))).encode()
            elif name.endswith(chosen):
                content = spoilt(chance, content)
            copy.writestr(name, content)
    return target.getvalue()


def look_at_chats(path: Path, numbers: range) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    turn = SavedTurn("?", (SavedImage.of(tiles, (9, 9), {"columns": 1, "rows": 2}),), "!", (1, 2), "stop")
    chat = SavedChat("x", "y", (turn,), SavedState("0" * 64, 3, np.zeros(50, np.uint8)))
    write_chat(path, chat, SECRET)
    data, outcomes = path.read_bytes(), set()
    for number in numbers:
        path.write_bytes(spoilt_chat(random.Random(number), data))
        started = time.process_time()
        try:
            found = read_chat(path, SECRET)
        except ChatFileError as error:
            checked(error)
            outcomes.add("refused")
        else:
            shown = [image for one in found.turns for image in one.images]
            assert all(
                image.tiles.dtype == np.uint8 and np.array_equal(image.tiles, tiles) for image in shown
            )
            outcomes.add("read")
        assert time.process_time() - started < SLOWEST
    assert outcomes == {"refused", "read"}


def test_a_spoilt_conversation_is_read_or_refused(tmp_path: Path) -> None:
    look_at_chats(tmp_path / "a.ayachat", range(FEW))


@pytest.mark.slow
def test_ten_thousand_spoilt_conversations_are_read_or_refused(tmp_path: Path) -> None:
    look_at_chats(tmp_path / "a.ayachat", range(FEW, FEW + MANY))
