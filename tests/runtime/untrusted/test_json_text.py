"""JSON from anybody: within bounded time and memory it is parsed, or refused with a sentence."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from ayaedge.untrusted.json_text import parse_json, read_json
from ayaedge.untrusted.regular_file import open_regular, read_regular

ORDINARY = {"a": [1, -2, 3.5, 1e300, True, None, 'text " \\ [[{{ ä'], "b": {"c": 2**64 - 1, "": {}}}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_ordinary_json_comes_back_as_it_was(encoding: str, ascii_only: bool) -> None:
    assert parse_json(json.dumps(ORDINARY, ensure_ascii=ascii_only).encode(encoding)) == ORDINARY
    assert parse_json(b"1") == 1


REFUSED = {
    "nothing": (b"", "Expecting value"),
    "half of it": (b'{"a": [1, ', "Expecting value"),
    "a string without an end": (b'["\\"' * 100_000, "Expecting|nested|Unterminated"),
    "no Unicode": (b'"\xff"', "valid Unicode"),
    "half of a pair": (b'["\\ud800"]', "valid Unicode"),
    "half of a pair as a name": (b'{"\\udfff": 1}', "valid Unicode"),
    "NaN": (b"[NaN]", "NaN"),
    "Infinity": (b"[-Infinity]", "-Infinity"),
    "beyond a float": (b"[1e999]", "too large a number"),
    "400 digits": (b"[" + b"9" * 400 + b"]", "400 digits"),
    "10 million digits": (b"-" + b"9" * 10_000_000, "digits"),
    "a name twice": (b'{"a": 1, "b": 2, "a": 3}', "'a' twice"),
    "lists in lists": (b"[" * 100_000 + b"]" * 100_000, "nested more than 64"),
    "objects in objects": (b'{"a":' * 100_000, "nested more than 64"),
    "depth behind a string of brackets": (b'["]]]\\"]]", ' + b"[" * 64 + b"]" * 65, "nested more than 64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_json_of_ours_is_refused_with_a_sentence(name: str) -> None:
    data, why = REFUSED[name]
    with pytest.raises(ValueError, match=why) as caught:
        parse_json(data)
    assert len(str(caught.value)) < 200


def test_depth_is_bounded_even_if_the_program_allows_python_to_recurse_far() -> None:
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        with pytest.raises(ValueError, match="nested"):
            parse_json(b"[" * 10**6)
    finally:
        sys.setrecursionlimit(before)
    assert parse_json(b"[" * 64 + b"]" * 64)


def test_a_hundred_thousand_names_of_which_one_is_there_twice_take_no_time() -> None:
    names = ",".join(f'"{number}": 0' for number in range(100_000))
    with pytest.raises(ValueError, match="'77' twice"):
        parse_json(f'{{{names}, "77": 0}}'.encode())


def test_more_bytes_than_allowed_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(ValueError, match=r"1099511627776 bytes, more than 100$"):
        read_json(path, most_bytes=100)
    path.write_bytes(b"[1]" + b" " * 97)
    assert read_json(path, most_bytes=100) == [1]
    with pytest.raises(ValueError, match="more than 99"):
        read_json(path, most_bytes=99)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs a file that grows as it is read")
def test_a_file_that_does_not_say_its_size_is_bounded_too() -> None:
    assert b"Pid" in read_regular(Path("/proc/self/status"), most_bytes=100_000)
    with pytest.raises(ValueError, match="more than 10"):
        read_regular(Path("/proc/self/status"), most_bytes=10)


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_regular_file_neither_waits_nor_is_read(tmp_path: Path, kind: str) -> None:
    path = {"device": Path("/dev/zero"), "directory": tmp_path}.get(kind, tmp_path / "pipe")
    if kind == "pipe":
        os.mkfifo(path)
    found: list[BaseException] = []

    def attempt() -> None:
        try:
            read_json(path, most_bytes=100)
        except (OSError, ValueError) as error:
            found.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert [type(error) for error in found] == [ValueError]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system cannot refuse links")
def test_a_link_is_followed_only_where_people_may_put_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[]")
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link", most_bytes=10) == []
    with pytest.raises(OSError, match="link"):
        open_regular(tmp_path / "link", links=False)
