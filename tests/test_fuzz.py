"""Whatever a caller hands over, there is an answer or a clear error: no crash, no output, nothing left behind.

The ordinary run takes the same examples each time, some hundreds of each kind. Others, and as many as wanted:

    AYAEDGE_FUZZ_EXAMPLES=10000 pytest tests/test_fuzz.py

or, in a process of its own that may crash, `pytest -m slow tests/test_fuzz.py`. `FOUND` is what was found this way.
"""

from __future__ import annotations

import array
import base64
import faulthandler
import gc
import io
import json
import math
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ayaedge import (
    NO_CACHE,
    AyaEdgeError,
    AyaVision,
    CacheOptions,
    DecoderOptions,
    InvalidOptionError,
    VisionOptions,
)
from ayaedge.bundle import demo_bundle
from random_schema import random_schema, unsupported_schema

EXAMPLES = int(os.environ.get("AYAEDGE_FUZZ_EXAMPLES", "0"))
USUAL, MANY = 160, 10_000
LONGEST_LINE, MOST_LINES = 2000, 60
"""Of a message; lists of faults have a line for each."""
SLOWEST = 60.0
"""Seconds of all processors together that one example takes, however busy they are with other things."""
HANGS = 3600.0 if EXAMPLES else 300.0
"""Seconds after which a test ends the process, with the stacks of all threads."""
IMAGES = Path(__file__).parents[1] / "examples" / "pictures"
QUESTION, SIX, ANSWER = "What number is at the bottom left?", IMAGES / "six-cells.png", "2675"
SHORT: dict[str, Any] = {"max_tokens": 2}

LIBTIFF = re.compile(
    r"[\w.]+: |Apparently should be |libtiff should be able |  (Value|-> NumberOfInks|It is not|which is different) "
)
"""How the lines begin that libtiff 4.7, inside Pillow, writes to stderr about broken files; some messages have several.
To be mended."""

FuzzTest = Callable[..., None]


def fuzz(share: float = 1.0) -> Callable[[FuzzTest], FuzzTest]:
    """Settings of a test that gets this share of the examples."""
    return settings(
        max_examples=int((EXAMPLES or USUAL) * share),
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AyaVision]:
    cache = CacheOptions(directory=tmp_path_factory.mktemp("fuzz"), disk_bytes=20_000_000)
    with AyaVision.load(cache=cache) as model:
        model.ask(QUESTION, images=[SIX])  # what is opened once is open now
        gc.collect()
        gc.freeze()  # what earlier files loaded, so that each search of a test is short
        yield model


@pytest.fixture(autouse=True)
def _nothing_left_behind(
    request: pytest.FixtureRequest,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """A test leaves no thread and no open file, writes nothing, and the model answers as before."""
    if request.node.get_closest_marker("slow"):  # takes hours, in a process that looks after itself
        yield
        return
    monkeypatch.chdir(tmp_path)  # an empty name is the current directory
    model = request.getfixturevalue("model")
    gc.collect()  # what earlier tests dropped goes now, not in between
    before = settled()
    with capfd.disabled():  # what is captured would be lost with the process
        stderr = os.dup(2)
    faulthandler.dump_traceback_later(HANGS, exit=True, file=stderr)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(stderr)
    assert model.ask(QUESTION, images=[SIX]).text == ANSWER
    assert settled() == before
    written, errors = capfd.readouterr()
    assert written == ""
    assert [line for line in errors.splitlines() if not LIBTIFF.match(line)] == []


def settled() -> tuple[int, int]:
    """Threads and open files, once those that were told to end have ended: until nothing changes for a moment."""
    counts: list[tuple[int, int]] = []
    while len(counts) < 3 or len(set(counts[-3:])) > 1:
        counts.append((threading.active_count(), psutil.Process().num_fds() if os.name == "posix" else 0))
        time.sleep(0.01)
    return counts[-1]


def check_message(message: str) -> None:
    """Something to read, of a bearable length, that can be printed, logged and sent."""
    lines = message.splitlines()
    assert lines, "empty"
    assert max(map(len, lines)) <= LONGEST_LINE, f"long: {len(message)} characters"
    assert len(lines) <= MOST_LINES, f"many lines: {len(lines)}"
    assert message.isascii() or message.encode("utf-8", "replace").decode() == message, (
        f"not printable: {message!a}"
    )


def strict(call: Callable[[], Any]) -> Any:
    """The result, or None after an error that is ours and clear; whatever else comes is a defect."""
    started = time.process_time()
    try:
        return call()
    except AyaEdgeError as error:
        check_message(str(error))
        return None
    finally:
        assert time.process_time() - started < SLOWEST


# --- values ---------------------------------------------------------------------------------------------------------
SPECIAL = sorted(json.loads((demo_bundle() / "manifest.json").read_text("utf-8"))["tokens"]["special"])
FRAGMENTS = [
    *SPECIAL, "<image>", "TILE_1", "TILE_GLOBAL", "<|", "＜image＞", "\0", "\ud800", "\udfff", "\ue000", "\U000f0000",
    "\U000f0001", "\U0010ffff", "\ufffd", "\ufeff", "\u202e", "\u200d", "e\u0301", "\u0301", "한", "🎈", "نص", "\r\n",
    "{{ x }}", "{% raw %}", "%s", "{}", '"', "\\", "\x1b[2J", " ", "7", "a",
]  # fmt: skip
CODECS = ["utf-8", "latin-1", "utf-16", "utf-32", "cp1252", "shift_jis", "ascii"]
DECODED = st.builds(
    lambda data, codec, errors: data.decode(codec, errors),
    st.binary(max_size=60), st.sampled_from(CODECS), st.sampled_from(["replace", "ignore", "backslashreplace"]),
) | st.binary(max_size=60).map(lambda data: data.decode("utf-8", "surrogateescape"))  # fmt: skip
JOINED = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(), max_size=3), max_size=12).map("".join)
LONG = st.builds(
    lambda text, count: (text * count)[:count],
    st.sampled_from(FRAGMENTS) | st.text(st.characters(), min_size=1, max_size=5),
    st.sampled_from([300, 300, 1000, 5000, 100_000]),
)
TEXTS = st.one_of(st.text(st.characters(), max_size=60), DECODED, JOINED, JOINED, DECODED, LONG)

HUGE = st.builds(
    lambda base, exponent, sign: sign * base**exponent,
    st.just(2), st.sampled_from([31, 32, 63, 64, 1300, 20_000]), st.sampled_from([1, -1]),
)  # fmt: skip
"""The largest are more than Python writes in digits; built here, because hypothesis writes what it samples from."""
NUMBERS = st.one_of(
    st.integers(-5, 5), st.integers(), st.floats(), HUGE, st.booleans(),
    st.sampled_from([np.int64(3), np.uint8(1), np.float32(0.5), np.float64("nan"), np.bool_(True), 1e308,
    5e-324, 1e-40]),
    st.builds(complex, st.floats(), st.floats()), st.decimals(), st.fractions(),
)  # fmt: skip


def nested(depth: int, inner: Any = 1) -> Any:
    """Lists inside one another: deeper than repr, json and recursive functions can go."""
    for number in range(depth):
        inner = [inner] if number % 2 else {"a": inner}
    return inner


ODD = st.one_of(
    st.none(), NUMBERS, TEXTS, st.binary(max_size=20),
    st.sampled_from([(), [], {}, set(), [""], [None], b"", object, object(), Ellipsis, len, range(3), {"a": 1},
    {1, 2}]),
    st.sampled_from([np.zeros(3), np.zeros((2, 2), np.uint8), np.array(None), np.array(["x"])]),
    st.just(3000).map(nested),
    st.lists(st.text(st.characters(), max_size=4) | st.integers(), max_size=3),
)  # fmt: skip
NO_FUNCTIONS = ODD.filter(lambda value: not callable(value))
"""What a function of the program raises reaches the program as it is."""
NAMES = st.text(st.characters(), max_size=8)
_LARGE: dict[str, Any] = {
    "deep": nested(99), "deeper": nested(3000), "list": ["x"] * 5000, "key": {"x" * 100_000: 1},
    "text": "x" * 100_000,
}  # fmt: skip
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES | HUGE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
) | st.sampled_from(["deep", "deeper", "list", "key", "text"]).map(lambda name: _LARGE[name])  # fmt: skip


# --- images -------------------------------------------------------------------------------------------------------
def _real_files() -> list[bytes]:
    """One image in every format that Pillow writes, with palettes, frames, profiles and EXIF."""
    with Image.open(IMAGES / "one-heart.png") as opened:
        small = opened.convert("RGB").resize((40, 30))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    exif.get_ifd(0x8769)[0x9286] = b"comment"
    saved: list[bytes] = []
    ways: list[tuple[str, str, dict[str, Any]]] = [
        ("PNG", "RGB", {}), ("PNG", "RGBA", {"exif": exif, "icc_profile": b"profile" * 9}), ("PNG", "P",
        {"bits": 4}),
        ("PNG", "P", {"transparency": b"\0\1\2"}), ("PNG", "I;16", {}), ("PNG", "1", {}), ("PNG", "LA",
        {"dpi": (1, 1)}),
        ("PNG", "RGB", {"save_all": True, "append_images": [small.rotate(90)]}),
        ("JPEG", "RGB", {"exif": exif, "comment": b"x"}), ("JPEG", "CMYK", {"progressive": True}), ("JPEG", "L",
        {}),
        ("MPO", "RGB", {"save_all": True, "append_images": [small.rotate(90)]}),
        ("GIF", "P", {}), ("GIF", "P", {"save_all": True, "append_images": [small], "transparency": 1,
        "comment": b"x"}),
        ("WEBP", "RGB", {"exif": exif}), ("WEBP", "RGBA", {"lossless": True}),
        ("WEBP", "RGB", {"save_all": True, "append_images": [small.rotate(90)]}),
        ("BMP", "RGB", {}), ("BMP", "P", {}), ("BMP", "1", {}), ("DIB", "RGB", {}),
        ("TIFF", "RGB", {"exif": exif}), ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "F", {}),
        ("TIFF", "RGB", {"compression": "jpeg"}), ("TIFF", "1", {"compression": "group4"}), ("TIFF", "I;16", {}),
        ("TIFF", "P", {"compression": "tiff_adobe_deflate", "save_all": True, "append_images": [small]}),
        ("TIFF", "CMYK", {"compression": "packbits"}), ("TIFF", "LAB", {}),
        ("ICO", "RGBA", {}), ("ICNS", "RGBA", {}), ("JPEG2000", "RGB", {}), ("AVIF", "RGB", {"exif": exif}),
        ("DDS", "RGBA", {}), ("PPM", "RGB", {}), ("PPM", "1", {}), ("PCX", "P", {}), ("TGA", "RGBA",
        {"compression": "tga_rle"}),
        ("SGI", "RGB", {}), ("QOI", "RGBA", {}), ("IM", "RGB", {}), ("XBM", "1", {}), ("MSP", "1", {}), ("BLP",
        "P", {}),
        ("SPIDER", "F", {}), ("EPS", "RGB", {}),
    ]  # fmt: skip
    for form, mode, options in ways:
        target = io.BytesIO()
        try:
            image = small.convert("L").convert(mode) if mode in ("I;16", "LAB") else small.convert(mode)
            if mode == "LAB":
                image = Image.new("LAB", (9, 9))
            image.save(target, form, **options)
        except (OSError, KeyError, ValueError):  # this build of Pillow cannot
            continue
        saved.append(target.getvalue())
    return saved


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    FILES = _real_files()
SIGNATURES = [
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\xff\0\0\0WEBPVP8 ", b"BM", b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08", b"II+\0\x08\0\0\0", b"\0\0\1\0", b"icns", b"P6 9 9 255\n", b"P3\n4 4\n255\n",
    b"%!PS-Adobe-3.0\n",
    b"8BPS\0\1", b"DDS ", b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x20ftypavif", b"qoif", b"BLP2", b"FTEX",
    b"SIMPLE  =", b"/* XPM */\n", b"#define x_width 9\n#define x_height 9\n", b"\xd7\xcd\xc6\x9a",
    b"\x0a\x05\x01\x08",
    b"P7 332\n", b"\x59\xa6\x6a\x95", b"DanM", b"\1\xda\1\1", b"\x80\xe8\0\0", b"MCIDAS", b"GRIB", b"BUFR",
    b"\x89HDF",
    b"\xb1\x68\xde\x3a", b"\x1c\x02\x05", b"Image type: RGB", b"\0\0\2\0", b"Pf\n4 4\n-1\n", b"Pyx\n",
]  # fmt: skip
EXTREMES = [
    b"\xff" * 4,
    b"\0" * 4,
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\0\0\0",
    b"\0\1",
    b"\xff\xff",
    b"\0\0\x32\0",
]
CHANGES = st.tuples(
    st.sampled_from(
        ["flip", "flip", "flip", "cut", "insert", "splice", "extreme", "extreme", "repeat", "end"]
    ),
    st.floats(0, 1) | st.floats(0, 0.05),
    st.binary(min_size=1, max_size=6),
    st.sampled_from(EXTREMES),
    st.integers(0, max(0, len(FILES) - 1)),
)


def changed(
    data: bytes, changes: list[tuple[str, float, bytes, bytes, int]], others: list[bytes] = FILES
) -> bytes:
    """A file with changes at these fractions of its length."""
    for kind, fraction, content, extreme, number in changes:
        place = int(fraction * len(data))
        before, after = data[:place], data[place:]
        other = others[number % len(others)]
        data = {
            "flip": before + bytes([(after[:1] or b"\0")[0] ^ (content[0] or 1)]) + after[1:],
            "cut": before + after[len(content) :],
            "insert": before + content + after,
            "splice": before + other[int(fraction * len(other)) :],
            "extreme": before + extreme + after[len(extreme) :],
            "repeat": before + after[:40] * 3 + after,
            "end": before,
        }[kind]
    return data


MUTATED = st.builds(
    changed, st.integers(0, len(FILES) - 1).map(lambda number: FILES[number]), st.lists(CHANGES, max_size=5)
)
SIGNED = st.builds(bytes.__add__, st.sampled_from(SIGNATURES), st.binary(max_size=120))
IMAGE_BYTES = st.one_of(st.binary(max_size=200), SIGNED, MUTATED, MUTATED, MUTATED)


def _data_url(data: bytes, scheme: str, kind: str, mark: str, junk: str, place: float) -> str:
    text = base64.b64encode(data).decode()
    cut = int(place * len(text))
    return f"{scheme}{kind}{mark},{text[:cut]}{junk}{text[cut:]}"


DATA_URLS = st.builds(
    _data_url,
    IMAGE_BYTES,
    st.sampled_from(["data:", "DATA:", "Data:", "dAtA:", " data:", "data"]),
    st.sampled_from(["image/png", "IMAGE/PNG", "", "image/png;charset=x",
    "text/plain"]) | st.text(st.characters(), max_size=9),
    st.sampled_from([";base64", ";base64", ";BASE64", "", ";base64;"]),
    st.sampled_from(["", "", "", "\n", " ", "%", "=", "é", "\ud800", "\0", "-_"]),
    st.floats(0, 1),
)  # fmt: skip
PATHS = st.one_of(
    TEXTS,
    TEXTS.map(lambda text: f"file://{text}"),
    TEXTS.map(lambda text: f"{IMAGES}/{text}"),
    st.text("abc:/\\.%~$\0\ud800é", max_size=20),
    st.sampled_from(["/dev/null", "/dev/full/x", ".", "/", "~", "-", "a" * 300, "/".join(["a" * 200] * 30),
    "CON", "NUL"]),
    TEXTS.filter(lambda text: "\0" not in text).map(Path),
    TEXTS.map(lambda text: _PathLike(text)),
    st.binary(max_size=20).map(lambda data: _PathLike(data)),
)  # fmt: skip


class _PathLike(os.PathLike[Any]):
    """What names a path by text or bytes, as `os.DirEntry` does."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __fspath__(self) -> Any:
        return self._path

    def __repr__(self) -> str:
        return f"_PathLike({self._path!r})"


def _array(kind: str, shape: list[int], order: int) -> Any:
    made = np.zeros(shape, kind)
    if not shape:
        return made
    return [
        made, made[::-1], made.T, made[..., ::2], np.asfortranarray(made), np.ma.masked_array(made),
        made.view(np.ndarray),
        np.broadcast_to(made[..., :1], shape) if shape[-1] else made, made.tolist(),
    ][order % 9]  # fmt: skip


ARRAYS = st.one_of(
    st.builds(
        _array,
        st.sampled_from(
            ["u1", "u1", "u1", "i1", "f4", "f8", "?", "O", "U3", "S2", "M8[s]", "c8", "u2,f4", "V5", ">u2"]
        ),
        st.lists(st.sampled_from([0, 1, 2, 3, 3, 4, 7, 40]), max_size=4),
        st.integers(0, 8),
    ),
    st.integers(0, 11).map(lambda number: ODD_ARRAYS[number]),
)
ODD_ARRAYS: list[Any] = [
         np.zeros((1, 2), np.uint8).view(np.matrix), np.uint8(3), memoryview(b"abcdef")[::2],
         memoryview(array.array("d", [1.0])),
         np.zeros((), np.uint8).data, np.zeros((3, 4, 3), np.uint8).data, bytearray(b"x"), array.array("B", b"x"),
         np.lib.stride_tricks.as_strided(np.zeros(9, np.uint8), (3, 3, 3), (0, 1, 1)), np.zeros((1, 70_000, 3),
         np.uint8),
         np.zeros((70_000, 1), np.uint8), np.zeros((2, 2, 3), np.uint8).view(np.recarray),
]  # fmt: skip
MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "La",
    "RGBa",
    "RGBX",
    "I;16",
    "I;16B",
]


def _pil(mode: str, size: tuple[int, int], how: str) -> Any:
    if how == "lazy":
        return Image.open(SIX)
    if how == "closed":
        with Image.open(SIX) as opened:
            return opened
    if how == "damaged":
        return Image.open(io.BytesIO(FILES[0][: len(FILES[0]) // 2]))
    image: Any = Image.new(mode, size)
    if how == "closed too":
        image.close()
    if how == "exif":
        image.getexif()[0x0112] = size[0]
    if how == "info":
        image.info.update(exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff", transparency=b"\0", icc_profile="x")
    if how == "float" and mode == "F":
        image.putpixel((0, 0), math.nan) if min(size) else None
    return image


PIL_IMAGES = st.builds(
    _pil,
    st.sampled_from(MODES),
    st.tuples(*[st.sampled_from([0, 1, 2, 9, 400])] * 2),
    st.sampled_from(["", "", "lazy", "closed", "closed too", "damaged", "exif", "info", "float"]),
)


# --- tests ----------------------------------------------------------------------------------------------------------
def look(model: AyaVision, images: Any, tiles: int | None = None) -> None:
    answer = strict(lambda: model.ask("What?", images=images, max_tiles=tiles, **SHORT))
    assert answer is None or isinstance(answer.text, str)


@fuzz()
@given(IMAGE_BYTES, st.sampled_from([None, 1, 1]))
def test_bytes_are_an_image_or_an_error(model: AyaVision, data: bytes, tiles: int | None) -> None:
    look(model, [data], tiles)


@fuzz()
@given(st.one_of(DATA_URLS, PATHS, ARRAYS, PIL_IMAGES, ODD), st.booleans())
def test_anything_is_an_image_or_an_error(model: AyaVision, image: Any, single: bool) -> None:
    look(model, image if single else [image], 1)
    encoded = strict(lambda: model.encode_image(image, max_tiles=1))
    assert encoded is None or encoded.cost.tiles == 1


@fuzz()
@given(TEXTS, st.none() | TEXTS, st.lists(TEXTS, max_size=2), st.booleans())
def test_any_text_is_a_prompt_or_an_error(
    model: AyaVision, question: str, system: str | None, stop: list[str], as_one: bool
) -> None:
    stops: Any = stop[0] if as_one and stop else stop
    answer = strict(lambda: model.ask(question, system=system, stop=stops, **SHORT))
    assert answer is None or not any(text in answer.text for text in ([stops] if as_one and stop else stops))


@fuzz()
@given(ODD | TEXTS, ODD | TEXTS)
def test_any_question_is_one_or_an_error(model: AyaVision, question: Any, system: Any) -> None:
    strict(lambda: model.ask(question, system=system, **SHORT))


GRAMMARS = st.lists(
    st.sampled_from(
        ["root", "a", " ::= ", "|", "(", ")", "[a-z]", "[^", "]", "*", "+", "?", "{2}", "{1,", "}", '"x"', '"',
        "\\x41",
         "\\uD800", "\n", "#", ".", " ", "<[1]>", "\\", "root ::= ", 'a ::= "b"\n', "{99999}", "0"]
    )
    | st.text(st.characters(), max_size=2),
    max_size=20,
).map("".join)  # fmt: skip


@fuzz()
@given(TEXTS | GRAMMARS | GRAMMARS.map(lambda text: f"root ::= {text}\n") | ODD)
def test_any_text_is_a_grammar_or_an_error(model: AyaVision, grammar: Any) -> None:
    strict(lambda: model.ask("x", grammar=grammar, **SHORT))


@fuzz(0.6)
@given(st.lists(TEXTS, max_size=4) | st.lists(ODD, max_size=3) | ODD)
def test_any_list_is_choices_or_an_error(model: AyaVision, choices: Any) -> None:
    answer = strict(lambda: model.ask("x", choices=choices, **SHORT))
    if answer is not None and choices is not None and answer.stop_reason == "stop":
        assert answer.text in choices


KEYWORDS = [
    "type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems",
    "enum", "const",
    "anyOf", "oneOf", "allOf", "$ref", "$defs", "$id", "minLength", "maxLength", "pattern", "format", "minimum",
    "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "minProperties", "maxProperties", "not", "title", "uniqueItems",
]  # fmt: skip
SCHEMA_LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    ["string", "number", "integer", "object", "array", "null", ["null", "string"], "#", "#/$defs/a",
    "#/properties/a", "a", "date",
     "^a{1,3}$", "^(a|b)*$", "^[", 0, 1, 2, -1, 3.5, 1e300, 10**300, 2**64, -0.0, 5e-324, 2000, 50_000, True,
     False, None, {}, [], ["a"]]
)  # fmt: skip
SCHEMAS = st.recursive(
    SCHEMA_LEAVES | JSON_VALUES,
    lambda inner: (
        st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", "b", "ä"]), inner, max_size=3)
        | st.lists(inner, max_size=3)
    ),
    max_leaves=14,
)
RANDOMS = st.integers(0, 2**32).map(random.Random)


def _spoilt(chance: random.Random, value: Any, pool: list[Any]) -> Any:
    """JSON in which something was replaced, left out or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(list(value))
        kept = {key: inner for key, inner in value.items() if key != name or chance.random() < 0.9}
        if name in kept:
            kept[name] = _spoilt(chance, kept[name], pool)
        if chance.random() < 0.2:
            kept[chance.choice([*kept, "x"])] = chance.choice(pool)
        return kept
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        return [*value[:place], _spoilt(chance, value[place], pool), *value[place + chance.randrange(2) :]]
    if isinstance(value, str) and value and chance.random() < 0.5:
        place = chance.randrange(len(value))
        return value[:place] + chance.choice(FRAGMENTS) + value[place + chance.randrange(2) :]
    return chance.choice(pool)


_ENDLESS = 10**5000
POOL = [None, True, 0, -1, 1.5, math.nan, math.inf, _ENDLESS, "", "x", "\ud800", "x" * 100_000, [], {}, [[]],
{"a": None},
        nested(99), nested(3000), "user", "type", "text", "image_url", b"x", (),
        "data:image/png;base64,AAAA"]  # fmt: skip


def _random_schema(chance: random.Random) -> Any:
    schema = random_schema(chance) if chance.random() < 0.8 else unsupported_schema(chance)[0]
    for _ in range(chance.randrange(4)):
        schema = _spoilt(chance, schema, [*POOL, *KEYWORDS, schema])
    return schema


FORMS = st.one_of(
    JSON_VALUES,
    st.one_of(SCHEMAS, SCHEMAS, RANDOMS.map(_random_schema), JSON_VALUES).flatmap(
        lambda schema: st.sampled_from(
            [{"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}, {"type": "json_schema",
            "schema": schema}]
        )
    ),
    st.dictionaries(st.sampled_from(["type", "json_schema", "schema", "name"]), JSON_VALUES | SCHEMA_LEAVES),
)  # fmt: skip


@fuzz()
@given(FORMS)
def test_any_json_is_a_form_or_an_error(model: AyaVision, form: Any) -> None:
    answer = strict(lambda: model.ask("x", response_format=form, **SHORT))
    if answer is not None and answer.stop_reason == "stop" and form is not None and form != {"type": "text"}:
        answer.parse()


VALID_MESSAGES: list[Any] = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What?"},
                {"type": "image_url",
                "image_url": {"url": "data:image/png;base64," + base64.b64encode(FILES[0]).decode()}},
                {"type": "image", "image": str(SIX)},
            ],
        },
        {"role": "assistant", "content": "x", "tool_calls": None},
        {"role": "user", "content": [{"type": "text", "text": "And?"}], "name": "n"},
    ],
]  # fmt: skip


def _spoilt_messages(chance: random.Random) -> Any:
    messages = chance.choice(VALID_MESSAGES)
    for _ in range(chance.choice([0, 1, 1, 2, 4])):
        messages = _spoilt(chance, messages, POOL)
    return messages


PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "image", "input_audio"]) | JSON_VALUES},
    optional={
        "text": TEXTS | JSON_VALUES,
        "image_url": st.fixed_dictionaries({"url": DATA_URLS | PATHS | JSON_VALUES})
        | DATA_URLS
        | JSON_VALUES,
        "image": DATA_URLS | PATHS | PIL_IMAGES | ARRAYS | JSON_VALUES,
    },
)
ROLES = st.sampled_from(["user", "user", "user", "assistant", "system", "tool", "developer"])
PLAIN_TURNS = st.fixed_dictionaries({"role": ROLES, "content": st.just("Hello") | TEXTS})
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "user", "assistant", "system", "tool", "developer"]) | JSON_VALUES},
    optional={
        "content": TEXTS | st.lists(PARTS | JSON_VALUES, max_size=3) | JSON_VALUES,
        "name": JSON_VALUES,
    },
)
MESSAGES = st.one_of(
    st.lists(PLAIN_TURNS, min_size=1, max_size=3),
    st.lists(TURNS | PLAIN_TURNS | JSON_VALUES, max_size=4),
    RANDOMS.map(_spoilt_messages),
    JSON_VALUES,
    ODD,
)


def complete(model: AyaVision, messages: Any, options: dict[str, Any]) -> None:
    """The whole answer or its chunks; both must be JSON."""
    reply = strict(lambda: model.create_chat_completion(messages=messages, local_files=IMAGES, **options))
    if reply is not None and not isinstance(reply, dict):
        reply = strict(lambda: list(reply))
    json.dumps(reply, allow_nan=False)


@fuzz()
@given(MESSAGES)
def test_any_json_is_a_conversation_or_an_error(model: AyaVision, messages: Any) -> None:
    complete(model, messages, {"max_tiles": 1, **SHORT})
    count = strict(lambda: model.count_tokens(messages, max_tiles=1, local_files=SIX.parent))
    assert count is None or count > 0


OPENAI = [
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "n",
    "stop", "seed",
    "temperature", "top_p", "response_format", "tools", "tool_choice", "user", "logit_bias", "presence_penalty",
    "metadata",
    "grammar", "choices", "tiles", "max_tiles", "budget", "overflow", "top_k", "modalities", "reasoning_effort",
    "store",
]  # fmt: skip


@fuzz()
@given(
    st.dictionaries(
        st.sampled_from(OPENAI)
        | st.sampled_from(OPENAI)
        | NAMES.filter(lambda name: name not in ("messages", "self")),
        st.sampled_from(
            [
                0,
                1,
                1,
                2,
                True,
                False,
                None,
                0.5,
                "x",
                ["x"],
                "none",
                {"include_usage": True},
                {"type": "text"},
            ]
        )
        | JSON_VALUES
        | NUMBERS,
        max_size=3,
    )
)
def test_any_options_of_a_completion_are_understood_or_refused(
    model: AyaVision, options: dict[str, Any]
) -> None:
    options.setdefault("max_tokens", 2)
    limits = [value for name, value in options.items() if name.startswith("max_") and isinstance(value, int)]
    if max(limits, default=0) > 2:
        options["stop"] = list("abcdefghijklmnopqrstuvwxyz0123456789")
    complete(model, VALID_MESSAGES[0], options)


def _nothing(*_: object) -> None: ...


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "max_tiles": NUMBERS | ODD,
    "tiles": st.sampled_from(["faithful", "native", "auto", "Auto", ""]) | ODD,
    "budget": NUMBERS | ODD,
    "temperature": NUMBERS | ODD,
    "top_p": NUMBERS | ODD,
    "top_k": NUMBERS | ODD,
    "seed": NUMBERS | ODD,
    "stop": st.lists(TEXTS, max_size=3) | ODD,
    "top_logprobs": st.integers(0, 21) | NUMBERS | ODD,
    "overflow": st.sampled_from(["error", "drop_oldest"]) | ODD,
    "on_progress": st.just(_nothing) | NO_FUNCTIONS,
    "images": st.just([SIX]) | st.just([FILES[0]]) | ODD,
}
KEYWORD_OPTIONS = st.sets(st.sampled_from(sorted(OPTIONS)), max_size=4).flatmap(
    lambda names: st.fixed_dictionaries({name: OPTIONS[name] for name in sorted(names)})
)


@fuzz()
@given(
    KEYWORD_OPTIONS,
    st.sampled_from(["ask", "stream", "submit"]),
    st.none() | st.just(_nothing) | NO_FUNCTIONS,
)
def test_any_options_of_a_question_are_understood_or_refused(
    model: AyaVision, options: dict[str, Any], way: str, on_text: Any
) -> None:
    if way == "submit":
        options["on_text"] = on_text
    asked = strict(lambda: getattr(model, way)("What?", **{**SHORT, **options}))
    if asked is not None and way == "stream":
        strict(lambda: list(asked))
    if asked is not None and way != "ask":
        asked = strict(lambda: asked.result(60))
    assert asked is None or len(asked.ids) <= 2


@fuzz(0.6)
@given(NUMBERS | ODD, st.text(max_size=5) | NAMES)
def test_any_limit_on_tokens_is_kept_or_refused(model: AyaVision, limit: Any, unknown: str) -> None:
    answer = strict(
        lambda: model.ask("x", max_tokens=limit, stop=list("0123456789abcdefghijklmnopqrstuvwxyz"))
    )
    assert answer is None or limit is None or len(answer.ids) <= limit
    if unknown.startswith("\0"):
        with pytest.raises(TypeError):
            model.ask("x", **{unknown: limit})


@pytest.fixture(scope="module")
def saved(model: AyaVision, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A conversation with an image and a state."""
    path = tmp_path_factory.mktemp("saved") / "x.ayachat"
    chat = model.chat(system="Be brief.")
    chat.ask("What?", images=[FILES[0]], max_tiles=1, max_tokens=3)
    chat.ask("And?", max_tokens=3)
    chat.save(path)
    return path.read_bytes()


def _rewritten(data: bytes, chance: random.Random) -> bytes:
    """The same archive with another text, so that its checksums hold."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            if name == "chat.json":
                document = json.loads(content)
                for _ in range(chance.randrange(1, 4)):
                    pool = [value for value in POOL if not isinstance(value, bytes) and value is not _ENDLESS]
                    document = _spoilt(chance, document, pool)
                try:
                    content = json.dumps(document).encode()
                except RecursionError:
                    content = b"[" * 100_000
            elif chance.random() < 0.1:
                content = changed(content, [("flip", chance.random(), b"x", b"", 0)])
            copy.writestr(name, content)
    return target.getvalue()


@fuzz()
@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=100).map(lambda data: b"PK\3\4" + data),
        st.lists(CHANGES, min_size=1, max_size=5),
        RANDOMS,
        RANDOMS,
    )
)
def test_any_bytes_are_a_saved_conversation_or_an_error(
    model: AyaVision, saved: bytes, tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.ayachat"
    if isinstance(content, list):
        content = changed(saved, content, [saved, *FILES])
    elif isinstance(content, random.Random):
        content = _rewritten(saved, content)
    path.write_bytes(content)
    chat = strict(lambda: model.open_chat(path))
    if chat is not None:
        strict(lambda: chat.ask("And?", **SHORT))


@fuzz(0.6)
@given(PATHS | ODD)
def test_any_path_is_a_saved_conversation_or_an_error(model: AyaVision, path: Any) -> None:
    assert strict(lambda: model.open_chat(path)) is None


LOAD: dict[str, st.SearchStrategy[Any]] = {
    "device": st.sampled_from(
        ["auto", "cpu", "cuda", "metal", "coreml", "webgpu", "openvino", "vulkan", "CPU"]
    )
    | ODD,
    "context": NUMBERS | ODD,
    "decoder": ODD | st.just(DecoderOptions(context_size=64)),
    "vision": ODD | st.just(VisionOptions()),
    "cache": ODD,
    "queue_size": NUMBERS | ODD,
    "bundle": PATHS | ODD,
}
LOAD_OPTIONS = st.sets(st.sampled_from(sorted(LOAD)), min_size=1, max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: LOAD[name] for name in sorted(names)})
)


@fuzz(0.15)
@given(LOAD_OPTIONS)
def test_any_options_of_loading_are_understood_or_refused(model: AyaVision, options: dict[str, Any]) -> None:
    options.setdefault("cache", NO_CACHE)
    loaded = strict(lambda: AyaVision.load(**options))
    if loaded is not None:
        with loaded:
            strict(lambda: loaded.ask("x", **SHORT))


DECODER = ["context_size", "threads", "threads_batch", "batch_size", "ubatch_size", "cache_type",
"cache_type_v", "device",
           "flash_attention", "repack", "gpu_layers", "draft_tokens", "all_logits", "acceleration"]  # fmt: skip
GROUPS: list[tuple[type[Any], list[str]]] = [
    (DecoderOptions, DECODER),
    (VisionOptions, ["threads", "device", "verbose"]),
    (CacheOptions, ["disk_bytes", "memory_bytes", "directory"]),
]
GROUP_OPTIONS = st.sampled_from(GROUPS).flatmap(
    lambda group: st.tuples(
        st.just(group[0]),
        st.dictionaries(
            st.sampled_from(group[1]),
            st.sampled_from([2, 3, "f16", "q8_0", "bf16", "cpu", True, False, None]) | NUMBERS | ODD,
            max_size=3,
        ),
    )
)
"""Numbers that are allowed and could ask for much memory or for many threads."""


@fuzz(0.3)
@given(GROUP_OPTIONS)
def test_any_groups_of_options_are_understood_or_refused(
    model: AyaVision, tmp_path_factory: pytest.TempPathFactory, chosen: tuple[type[Any], dict[str, Any]]
) -> None:
    kind, options = chosen
    made = strict(lambda: kind(**options))
    small = all(value is None or (isinstance(value, int) and value < 4) for name, value in options.items()
                if name in ("context_size", "threads", "threads_batch", "batch_size", "ubatch_size"))  # fmt: skip
    directory = options.get("directory")
    if made is None or not small or (isinstance(directory, (str, os.PathLike)) and directory):
        return
    name = {DecoderOptions: "decoder", VisionOptions: "vision", CacheOptions: "cache"}[kind]
    loaded = strict(lambda: AyaVision.load(**{"cache": NO_CACHE, name: made}))
    if loaded is not None:
        with loaded:
            strict(lambda: loaded.ask("x", images=[SIX], max_tiles=1, **SHORT))


def _tail(name: str) -> bytes:
    """A small image in a format whose decoder raises what others do not."""
    header = {
        "DDS": struct.pack("<4s7I44x8I20x", b"DDS ", 124, 0x1007, 4, 4, 16, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0)
    }
    return header[name] + b"\0" * 64


def _form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "schema": schema}


def _palette_with_alphas() -> Any:
    image = Image.new("P", (9, 9))
    image.info["transparency"] = b"\0\x80"
    return image


def _saved_palette() -> bytes:
    image, target = Image.new("P", (9, 9)), io.BytesIO()
    image.putpalette([*range(9)])
    image.save(target, "PNG", transparency=b"\0\x80")
    return target.getvalue()


def _closed_before_it_was_read() -> Any:
    with Image.open(SIX) as image:
        return image


Found = tuple[str, Callable[[Any], Any]]
DIGITS = "numbers of more than 4300 digits have no repr"
DEEP = "what is nested too deep has no repr"
load: Callable[..., Any] = AyaVision.load
ARRAY: Any = np.zeros(3)
NAME: Any = "x" * 300
FOUND: list[Found] = [
    (DIGITS, lambda model: model.ask("x", max_tokens=_HUGE_NEGATIVE)),
    (DIGITS, lambda model: model.ask("x", top_k=_ENDLESS)),
    (DIGITS, lambda model: model.ask("x", seed=_ENDLESS)),
    (DIGITS, lambda model: model.ask("x", tiles=_ENDLESS)),
    (DIGITS, lambda model: model.ask("x", choices=[_ENDLESS])),
    (DIGITS, lambda model: model.ask("x", response_format=_ENDLESS)),
    (DIGITS, lambda model: AyaVision.load(context=_ENDLESS)),
    (DEEP, lambda model: model.ask("x", temperature=nested(3000))),
    (DEEP, lambda model: model.ask("x", overflow=nested(3000))),
    (DEEP, lambda model: model.ask("x", stop=nested(3000))),
    (DEEP, lambda model: model.ask("x", grammar=nested(3000))),
    ("a budget is compared before its type is known", lambda model: model.ask("x", budget="1", tiles="auto")),
    (
        "a budget is compared before its type is known",
        lambda model: model.ask("x", budget=ARRAY, tiles="auto"),
    ),
    ("an array is compared with words", lambda model: model.ask("x", tiles=ARRAY)),
    ("an array is compared with words", lambda model: model.ask("x", overflow=ARRAY)),
    ("an array is compared with words", lambda model: DecoderOptions(cache_type=ARRAY)),
    ("an array is compared with words", lambda model: VisionOptions(device=ARRAY)),
    ("a callback must be callable", lambda model: model.ask("x", on_progress=5, **SHORT)),
    ("a callback must be callable", lambda model: model.submit("x", on_text="y", **SHORT).result(60)),
    ("a callback must be callable", lambda model: model.submit("x", on_text=ARRAY, **SHORT)),
    ("a value is shown whole", lambda model: model.ask("x", seed="9" * 100_000)),
    ("a value is shown whole", lambda model: model.ask("x", stop=["9" * 100_000, ""])),
    ("a value is shown whole", lambda model: model.ask("x", response_format=_form({"y" * 100_000: 1}))),
    ("a path is shown whole", lambda model: model.open_chat("x" * 100_000)),
    ("a path is shown whole", lambda model: model.ask("x", images=["x" * 100_000])),
    ("a path is shown whole", lambda model: AyaVision.load("x" * 100_000)),
    ("a name may hold line breaks of all kinds", lambda model: model.ask("x", images=["\x1e" * 300])),
    ("a path may have no UTF-8", lambda model: model.open_chat("\udcff")),
    ("a path may have no UTF-8", lambda model: model.ask("x", images=["\udcff"])),
    ("a path may have no UTF-8", lambda model: AyaVision.load("\udcff")),
    ("a data URL may have no UTF-8", lambda model: model.ask("x", images=["data:\udcff"])),
    ("a path has a type", lambda model: model.open_chat(5)),
    ("a path has a type", lambda model: model.open_chat(b"x")),
    ("a path has a type", lambda model: load(5)),
    ("a path has a type", lambda model: model.ask("x", images=[_PathLike(b"x")])),
    ("a directory may be a string", lambda model: _load_and_close(cache=CacheOptions(directory=NAME))),
    ("options have a type", lambda model: load(cache="x")),
    ("options have a type", lambda model: load(decoder=5)),
    ("options have a type", lambda model: load(vision=5)),
    ("Pillow warns", lambda model: model.ask("x", images=[b"MM\0*\0\0\0\x08"])),
    ("Pillow warns", lambda model: model.ask("x", images=[_palette_with_alphas()], **SHORT)),
    ("Pillow warns", lambda model: model.ask("x", images=[_saved_palette()], **SHORT)),
    ("Pillow raises what it likes", lambda model: model.ask("x", images=[_tail("DDS")])),
    ("Pillow raises what it likes", lambda model: model.ask("x", images=[_closed_before_it_was_read()])),
    (
        "a signalling NaN equals nothing, not even quietly",
        lambda model: model.create_chat_completion(VALID_MESSAGES[0], n=Decimal("sNaN"), **SHORT),
    ),
    ("a device or a pipe is no file", lambda model: _ask_about_a_pipe(model)),
    ("1e400 is no C float", lambda model: model.ask("x", temperature=10**400, **SHORT)),
]
"""What was not clear once, and why."""
_HUGE_NEGATIVE = -(10**5000)


def _load_and_close(**options: Any) -> None:
    AyaVision.load(**options).close()


def _ask_about_a_pipe(model: AyaVision) -> Any:
    """A pipe that nobody writes to; it is opened here for writing at last, so that the model can go on."""
    if not hasattr(os, "mkfifo"):
        raise InvalidOptionError("there are no named pipes")
    with tempfile.TemporaryDirectory() as directory:
        pipe = Path(directory) / "pipe"
        os.mkfifo(pipe)
        handle = model.submit("x", images=[pipe], **SHORT)
        try:
            return handle.result(0.5)
        except TimeoutError:
            os.close(os.open(pipe, os.O_WRONLY))
            with suppress(AyaEdgeError):
                handle.result(60)
            raise


@pytest.mark.parametrize(
    "call",
    [pytest.param(call, id=f"{reason} ({number})") for number, (reason, call) in enumerate(FOUND)],
)
def test_what_was_found_is_a_clear_error(model: AyaVision, call: Callable[[AyaVision], Any]) -> None:
    strict(lambda: call(model))


@pytest.mark.slow
def test_ten_thousand_examples_of_each_in_a_process_that_may_crash() -> None:
    environment = {**os.environ, "AYAEDGE_FUZZ_EXAMPLES": str(EXAMPLES or MANY)}
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider"),
        *("-n", "auto", "--maxschedchunk", "1"),  # no test waits behind the longest
        __file__,
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
