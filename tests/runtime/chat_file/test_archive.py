"""Conversations as files: what is written is read again, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import itertools
import json
import logging
import os
import random
import stat
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayaedge import AyaVision
from ayaedge.cache.user_secret import user_secret
from ayaedge.chat_file import archive as chat_file
from ayaedge.chat_file.archive import read_chat, write_chat
from ayaedge.chat_file.saved_chat import SavedChat, SavedImage, SavedState, SavedTurn, tiles_sha256
from ayaedge.errors import ChatFileError, printable

SECRET = bytes(range(32))
OTHER_SECRET = bytes(32)
KEY = hashlib.sha256(b"prefix").hexdigest()
NAMES = [
    "رحلة.ayachat",
    "旅行.ayachat",
    "यात्रा.ayachat",
    "🧳✈️.ayachat",
    " my trip .ayachat",
    "no ending",
    "ä" * 120,
]

Members = dict[str, bytes]


def tiles(count: int = 2, side: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def image(seed: int = 0, **facts: object) -> SavedImage:
    return SavedImage.of(tiles(seed=seed), (640, 480), facts)


def state(size: int = 300) -> SavedState:
    return SavedState(KEY, 17, np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8))


def conversation(*, with_state: bool = True) -> SavedChat:
    return SavedChat(
        "aya-vision-8b",
        "Sei höflich.",
        (
            SavedTurn(
                "ما هذا؟", (image(policy="faithful", grid=[3, 4]),), "一只猫 🐈", (5, 0, 255_000), "stop"
            ),
            SavedTurn("और यह?", (), "", None, "cancelled"),
        ),
        state() if with_state else None,
    )


def saved(path: Path, chat: SavedChat | None = None) -> Path:
    write_chat(path, conversation() if chat is None else chat, SECRET)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return saved(tmp_path / "trip.ayachat")


def assert_equal(found: SavedChat, expected: SavedChat) -> None:
    """All of it, to the last pixel."""
    assert found == expected
    for turn, other in zip(found.turns, expected.turns, strict=True):
        for one, two in zip(turn.images, other.images, strict=True):
            np.testing.assert_array_equal(one.tiles, two.tiles)
            assert one.tiles.dtype == np.uint8
    if found.state is not None and expected.state is not None:
        np.testing.assert_array_equal(found.state.data, expected.state.data)


def assert_same_or_refused(path: Path, expected: SavedChat) -> bool:
    """Whether it could be read; then it is the same, except that the state may have been left out."""
    try:
        found = read_chat(path, SECRET)
    except ChatFileError as error:
        assert printable(str(path)) in str(error)
        return False
    assert_equal(found, expected if found.state else dataclasses.replace(expected, state=None))
    return True


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(
    path: Path, members: Members | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED
) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")  # of duplicate names
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)


def change_json(path: Path, change: Callable[[Any], object]) -> None:
    """Let `change` change the parsed chat.json."""
    members = members_of(path)
    document = json.loads(members["chat.json"])
    change(document)
    members["chat.json"] = json.dumps(document).encode()
    write_members(path, members)


def refused(path: Path, secret: bytes | None = SECRET) -> str:
    with pytest.raises(ChatFileError) as caught:
        read_chat(path, secret)
    assert printable(str(path)) in str(caught.value)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


@pytest.mark.parametrize("with_state", [True, False])
def test_a_conversation_comes_back_as_it_was(tmp_path: Path, with_state: bool) -> None:
    chat = conversation(with_state=with_state)
    found = read_chat(saved(tmp_path / "a", chat), SECRET)
    assert (found.state is not None) == with_state
    assert_equal(found, chat)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
facts = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
        lambda inner: st.lists(inner, max_size=3),
    ),
)
images = st.builds(
    lambda seed, count, side, size, known: SavedImage.of(tiles(count, side, seed), size, known),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)),
    facts,
)
ids = st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
reasons = st.sampled_from(["stop", "length", "cancelled"])
turns = st.builds(SavedTurn, texts, st.lists(images, max_size=2).map(tuple), texts, ids, reasons)
states = st.builds(
    SavedState,
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.integers(0, 2**31 - 1),
    st.binary(max_size=100).map(lambda content: np.frombuffer(content, np.uint8)),
)
chats = st.builds(
    SavedChat, texts, st.none() | texts, st.lists(turns, max_size=4).map(tuple), st.none() | states
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=chats)
def test_any_conversation_comes_back_as_it_was(tmp_path: Path, chat: SavedChat) -> None:
    found = read_chat(saved(tmp_path / "a", chat), SECRET)
    assert_equal(found, chat)
    assert (found.state is None) == (chat.state is None)


def test_equal_conversations_give_equal_files(tmp_path: Path) -> None:
    assert saved(tmp_path / "a").read_bytes() == saved(tmp_path / "b").read_bytes()


def test_a_state_in_many_pieces_and_not_contiguous_comes_back(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 2 * (2 * chat_file._CHUNK + 5), dtype=np.uint8)[::2]
    chat = SavedChat("m", None, (), SavedState(KEY, 1, data))
    found = read_chat(saved(tmp_path / "a", chat), SECRET)
    assert found.state is not None
    np.testing.assert_array_equal(found.state.data, data)


def test_an_image_of_real_size_comes_back(tmp_path: Path) -> None:
    one = SavedImage.of(tiles(13, 364), (4000, 3000))
    chat = SavedChat("m", None, (SavedTurn("?", (one,), "!", (), "stop"),))
    assert_equal(read_chat(saved(tmp_path / "a", chat), SECRET), chat)


def test_an_image_that_was_used_twice_is_stored_once(tmp_path: Path) -> None:
    first, again = image(policy="auto"), image(policy="native")
    chat = SavedChat("m", None, (SavedTurn("a", (first, again), "b", (), "stop"),) * 2)
    path = saved(tmp_path / "a", chat)
    assert list(members_of(path)) == ["chat.json", f"pictures/{first.sha256}.png"]
    found = read_chat(path, SECRET)
    assert_equal(found, chat)
    assert len({id(one.tiles) for turn in found.turns for one in turn.images}) == 1


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    assert tiles_sha256(np.zeros((4, 1, 1, 3), np.uint8)) != tiles_sha256(np.zeros((1, 2, 2, 3), np.uint8))


def test_people_can_read_the_text(file: Path) -> None:
    content = file.read_bytes().decode("utf-8", "ignore")
    assert '      "question": "ما هذا؟",\n' in content
    assert '"answer": "一只猫 🐈"' in content
    assert '"ids": [5, 0, 255000]' in content
    assert set(map(type, json.loads(members_of(file)["chat.json"])["turns"])) == {dict}


def test_any_program_can_show_the_images(file: Path) -> None:
    from PIL import Image

    expected = conversation().turns[0].images[0]
    with Image.open(io.BytesIO(members_of(file)[f"pictures/{expected.sha256}.png"])) as image:
        np.testing.assert_array_equal(np.asarray(image), expected.tiles.reshape(6, 3, 3))


@pytest.mark.parametrize("name", NAMES)
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "फ़ोल्डर 📁").mkdir()
    path = saved(tmp_path / "फ़ोल्डर 📁" / name)
    assert_equal(read_chat(path, SECRET), conversation())
    assert [entry.name for entry in path.parent.iterdir()] == [name]


@contextmanager
def files_below(most: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond this, as a full disk would."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_user_may_read_it_also_where_others_could_before(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch(0o644)
    before = os.umask(0)
    try:
        saved(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("most", [0, 100, 1000, 150_000, 1_000_000])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a")
    old = path.read_bytes()
    large = SavedImage.of(tiles(3, 200), (1, 1))
    chat = SavedChat("m", None, (SavedTurn("?" * 100, (large,), "", (), "stop"),), state(1_000_000))
    with files_below(most), pytest.raises(ChatFileError, match=r"cannot be saved as .*too large") as caught:
        write_chat(path, chat, SECRET)
    assert isinstance(caught.value.__cause__, OSError)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    del caught
    gc.collect()
    assert not said, "what the error held goes without a word on stderr"


@pytest.mark.parametrize("stop", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_write_that_is_stopped_at_its_end_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    path = saved(tmp_path / "a")
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise stop

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ChatFileError if isinstance(stop, OSError) else KeyboardInterrupt):
        write_chat(path, SavedChat("m", None, ()), SECRET)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_places_where_no_file_can_be_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in {
        tmp_path: "this is a directory",
        tmp_path / "none" / "a": "there is no directory .*none",
        tmp_path / "file" / "a": "there is no directory .*file",
        tmp_path / ("a" * 300): "[Nn]ame too long",
        tmp_path / "a\0b": "null",
    }.items():
        with pytest.raises(ChatFileError, match=reason) as caught:
            saved(path)
        assert printable(str(path)) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def turn_with(**changes: Any) -> SavedChat:
    turn = SavedTurn("?", (image(),), "!", (1,), "stop")
    return SavedChat("m", None, (dataclasses.replace(turn, **changes),))


def one_image(**changes: Any) -> SavedChat:
    return turn_with(images=(dataclasses.replace(image(), **changes),))


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (turn_with(question="\ud800"), "not valid Unicode"),
        (turn_with(answer="\ud83d\ude00"), "not valid Unicode"),
        (turn_with(question=None), "question of turn 1 has the wrong type"),
        (turn_with(stop_reason="tired"), "stop_reason of turn 1"),
        (turn_with(ids=(1, -1)), "a token of turn 1"),
        (turn_with(ids=(True,)), "a token of turn 1"),
        (turn_with(ids=(2**31,)), "a token of turn 1"),
        (turn_with(ids=(np.int64(1),)), "not JSON serializable"),
        (one_image(facts={"a": float("nan")}), "not JSON compliant"),
        (one_image(facts={"a": {1: 2}}), "named by text, not by 1"),
        (one_image(facts={"a": [({1: 2},)]}), "named by text, not by 1"),
        (one_image(facts={"a": object()}), "not JSON serializable"),
        (one_image(facts={"\udfff": 1}), "not valid Unicode"),
        (one_image(size=(0, 5)), "size of turn 1, image 1"),
        (one_image(size=(5,)), "width and height"),
        (one_image(sha256="0" * 64), "SHA-256 of an image"),
        (one_image(sha256="../../etc"), "SHA-256 of an image"),
        (turn_with(images=(SavedImage.of(tiles()[:, :, :2], (1, 1)),)), "shape"),
        (turn_with(images=(SavedImage.of(tiles()[0], (1, 1)),)), "shape"),
        (turn_with(images=(SavedImage.of(tiles()[:0], (1, 1)),)), "tiles of turn 1, image 1"),
        (turn_with(images=(SavedImage.of(tiles(300, 1), (1, 1)),)), "tiles of turn 1, image 1"),
        (turn_with(images=(SavedImage.of(tiles().astype(np.int8), (1, 1)),)), "int8"),  # type: ignore[arg-type]
        (SavedChat("m", None, (), SavedState("abc", 1, np.zeros(3, np.uint8))), "key of state"),
        (SavedChat("m", None, (), SavedState(KEY, -1, np.zeros(3, np.uint8))), "count of state"),
        (SavedChat("m", None, (), SavedState(KEY, 1, np.zeros((3, 1), np.uint8))), "shape"),
        (SavedChat("m", 5, ()), "system of chat.json"),  # type: ignore[arg-type]
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, chat: SavedChat, reason: str) -> None:
    with pytest.raises(ChatFileError, match=reason):
        write_chat(tmp_path / "a", chat, SECRET)
    assert not list(tmp_path.iterdir())


def test_facts_that_are_nested_without_end_are_not_written(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["self"] = [endless]
    with pytest.raises(ChatFileError):
        write_chat(tmp_path / "a", one_image(facts=endless), SECRET)
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_long_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ayaedge.chat_file.document.MOST_TEXT", 1000)
    with pytest.raises(ChatFileError, match="more than 1000"):
        saved(tmp_path / "a", turn_with(question="long " * 200))


@pytest.mark.parametrize("secret", [OTHER_SECRET, None])
def test_another_users_state_is_not_used_and_the_text_is(
    file: Path, secret: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    def never(key: str) -> bool:
        raise AssertionError

    with caplog.at_level(logging.WARNING):
        found = read_chat(file, secret, wants_state=never)
    assert_equal(found, conversation(with_state=False))
    assert "was not saved by this user" in caplog.text
    assert "猫" not in caplog.text


def test_a_state_that_nobody_wants_is_not_read(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = []

    def wants(key: str) -> bool:
        asked.append(key)
        return False

    with caplog.at_level(logging.WARNING):
        assert_equal(read_chat(file, SECRET, wants_state=wants), conversation(with_state=False))
    assert asked == [KEY]
    assert not caplog.text


def test_without_a_secret_no_state_is_written(tmp_path: Path) -> None:
    write_chat(tmp_path / "a", conversation(), None)
    assert "state.bin" not in members_of(tmp_path / "a")
    assert_equal(read_chat(tmp_path / "a", SECRET), conversation(with_state=False))


@pytest.mark.parametrize(
    "change",
    [
        {"key": "0" * 64},
        {"count": 18},
        {"size": 299},
        {"sha256": hashlib.sha256(b"x" * 300).hexdigest()},
        {"hmac": "0" * 64},
    ],
)
def test_a_state_under_a_false_description_is_not_used(file: Path, change: dict[str, Any]) -> None:
    change_json(file, lambda document: document["state"].update(change))
    assert_equal(read_chat(file, SECRET), conversation(with_state=False))


@pytest.mark.parametrize("data", [b"x" * 300, b"", b"x" * 1000])
def test_other_data_under_a_true_description_are_not_used(
    file: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    members = members_of(file)
    members["state.bin"] = data
    write_members(file, members)
    with caplog.at_level(logging.WARNING):
        assert_equal(read_chat(file, SECRET), conversation(with_state=False))
    assert "cannot be used, and is computed again" in caplog.text


def test_a_damaged_state_does_not_cost_the_text(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(state().data.tobytes()) + 100] ^= 1
    file.write_bytes(content)
    assert_equal(read_chat(file, SECRET), conversation(with_state=False))


def test_each_byte_that_is_flipped_is_harmless_or_found(file: Path) -> None:
    content = file.read_bytes()
    generator = random.Random(0)
    read = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= generator.randint(1, 255)
        file.write_bytes(changed)
        read += assert_same_or_refused(file, conversation())
    assert len(state().data) <= read < len(content) // 2


def test_several_changes_at_once_are_harmless_or_found(file: Path) -> None:
    content = file.read_bytes()
    generator = random.Random(1)
    for _ in range(700):
        changed = bytearray(content)
        start = generator.choice([0, 0, len(content) - 500])  # the list of members stands at the end
        for _ in range(generator.randint(1, 6)):
            changed[generator.randrange(start, len(content))] = generator.choice([0, 1, 127, 255, 80, 47])
        file.write_bytes(changed)
        assert_same_or_refused(file, conversation())


def test_a_file_that_was_cut_at_any_place_is_found(file: Path) -> None:
    content = file.read_bytes()
    for length in range(len(content)):
        file.write_bytes(content[:length])
        refused(file)


def test_a_file_that_lacks_any_stretch_is_found_or_lacks_its_state(file: Path) -> None:
    content = file.read_bytes()
    generator = random.Random(2)
    for _ in range(300):
        start, stop = sorted(generator.sample(range(len(content) + 1), 2))
        file.write_bytes(content[:start] + content[stop:])
        assert_same_or_refused(file, conversation())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300), begin=st.sampled_from([b"", b"PK\3\4"]), end=st.booleans())
def test_random_bytes_are_no_conversation(tmp_path: Path, content: bytes, begin: bytes, end: bool) -> None:
    path = tmp_path / "a"
    path.write_bytes(begin + content + (b"PK\5\6" + content[:18].ljust(18, b"\0") if end else b""))
    refused(path)


def test_what_is_not_a_file_is_named(tmp_path: Path) -> None:
    assert "there is no conversation at" in refused(tmp_path / "none")
    assert "it is not a file" in refused(tmp_path)
    assert "null" in refused(tmp_path / "a\0b")
    refused(tmp_path / ("a" * 300))


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("damage", ["removed", "renamed", "replaced", "emptied", "doubled", "prefixed"])
def test_members_that_are_not_as_they_should_be_are_found(file: Path, index: int, damage: str) -> None:
    parts = list(members_of(file).items())
    name, content = parts[index]
    outcome = {
        "removed": [],
        "renamed": [(name + "x", content)],
        "replaced": [(name, parts[index - 1][1])],
        "emptied": [(name, b"")],
        "doubled": [(name, content), (name, content)],
        "prefixed": [("/" + name, content)],
    }
    parts[index : index + 1] = outcome[damage]
    write_members(file, parts)
    if name == "state.bin" and damage in ("replaced", "emptied"):
        assert_equal(read_chat(file, SECRET), conversation(with_state=False))
    else:
        refused(file)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../up", "C:\\x", "pictures/", f"pictures/{'0' * 64}.png", "e", "x" * 60_000]
)
def test_members_of_which_the_conversation_does_not_speak_are_refused(file: Path, name: str) -> None:
    write_members(file, {**members_of(file), name: b"?"})
    message = refused(file)
    assert name[:100].replace("\\", "\\\\") in message
    assert len(message) < 500


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(file: Path, method: int) -> None:
    write_members(file, members_of(file), method)
    assert "compressed" in refused(file)


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    write_members(tmp_path / "a", {"chat.json": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    assert "larger than the file" in refused(tmp_path / "a")


def test_encrypted_members_are_refused(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for signature, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        start = content.index(signature)
        content[start + place] |= 1
    file.write_bytes(content)
    assert "encrypted" in refused(file)


def test_members_that_lie_on_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_members(path, {f"{number:02}": bytes(100) for number in range(20)})
    content = path.read_bytes()
    first = content.index(b"PK\1\2")
    end = bytearray(content[-22:])
    end[16:20] = struct.pack("<I", 30 + 2 + 100)
    path.write_bytes(content[: 30 + 2 + 100] + content[first:-22] + end)
    assert "larger than the file" in refused(path)


def test_a_list_of_very_many_members_is_not_read(tmp_path: Path) -> None:
    size = chat_file._MOST_LIST + 1
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, size, 0, 0)
    (tmp_path / "a").write_bytes(bytes(size) + end)
    assert "too many at once" in refused(tmp_path / "a")


def test_a_text_that_is_too_long_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_file, "MOST_TEXT", 500)
    assert "chat.json has" in refused(file)


def replace_json(path: Path, text: bytes) -> None:
    write_members(path, {**members_of(path), "chat.json": text})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "has no format_version"),
        (b"null", "has no format_version"),
        (b"{}", "has no format_version"),
        (b'{"format_version": true}', "wrong type"),
        (b'{"format_version": "1"}', "wrong type"),
        (b'{"format_version": 0}', "is not known"),
        (b'{"format_version": 2, "anything": []}', "written by a newer ayaedge"),
        (b'{"format_version": 1}', "has no state"),
        (b"[" * 1_000_000, ""),
        (b'{"a":' * 1_000_000, ""),
        (b"1" * 100_000, ""),
    ],
)
def test_a_text_that_is_no_conversation_is_refused(file: Path, text: bytes, reason: str) -> None:
    replace_json(file, text)
    assert reason in refused(file)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value in a JSON document."""
    yield path
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def put(document: Any, path: tuple[Any, ...], value: object) -> Any:
    """The document with another value at a place; without it if the value is `...`."""
    if not path:
        return None if value is ... else value
    changed = document.copy()
    if value is ... and len(path) == 1:
        del changed[path[0]]
    else:
        changed[path[0]] = put(document[path[0]], path[1:], value)
    return changed


ODD = [..., None, True, -1, 2**40, 10**400, 0.5, 1e999, float("nan"), "", "\ud800", "é", "../x", [], [[]], {}]


def test_wrong_values_anywhere_are_refused_or_text(file: Path) -> None:
    members = members_of(file)
    document = json.loads(members["chat.json"])
    for path, odd in itertools.product(places(document), ODD):
        changed = put(document, path, odd)
        if changed == document:
            continue
        replace_json(file, json.dumps(changed).encode())
        try:
            found = read_chat(file, SECRET)
        except ChatFileError:
            continue
        assert odd not in ("\ud800", 1e999), path
        free = {"model", "system", "question", "answer", "ids", "facts"} & set(path)
        assert free or path == ("turns", 1) or found.state is None, f"{odd!r} was taken at {path}"


def change_image(path: Path, content: bytes, **changes: object) -> str:
    """Put another PNG in the place of the only one, and other figures; returns the reason for which it is refused."""
    members = members_of(path)
    (name,) = (name for name in members if name.startswith("pictures/"))
    members[name] = content or members[name]
    write_members(path, members)
    change_json(path, lambda document: document["turns"][0]["pictures"][0].update(changes))
    return refused(path)


def png(pixels: bytes, width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8) -> bytes:
    """A PNG with these pixels (or not), and other chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    all_chunks = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in all_chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


ROWS = (b"\0" + bytes(9)) * 6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(ROWS, 3, 6), "shows something else"),
        (png(ROWS[:-1], 3, 6), "damaged"),
        (png(b"", 3, 6), "damaged"),
        (png(b"\7" * 60, 3, 6), "damaged"),
        (png(ROWS, 3, 6)[:-1], "is not a PNG of 3 x 6 pixels"),
        (png(ROWS, 3, 6) + b"x", "is not a PNG of 3 x 6 pixels"),
        (png(ROWS, 3, 6)[:33], "is not a PNG of 3 x 6 pixels"),
        (png(ROWS, 3, 6)[:50], "is not a PNG of 3 x 6 pixels"),
        (png(ROWS, 3, 6).replace(b"IDAT", b"iTXt"), "is not a PNG of 3 x 6 pixels"),
        (png(ROWS, 3, 6, (b"tEXt", b"a\0b")), "is not a PNG of 3 x 6 pixels"),
        (png(ROWS, 6, 3), "is not a PNG of 3 x 6 pixels"),
        (png(ROWS, 100_000, 100_000), "is not a PNG of 3 x 6 pixels"),
        (png(ROWS, 3, 6, depth=16), "is not a PNG of 3 x 6 pixels"),
        (b"GIF89a", "is not a PNG of 3 x 6 pixels"),
        (b"\0", "is not a PNG of 3 x 6 pixels"),
    ],
)
def test_images_that_are_not_as_they_were_written_are_refused(
    file: Path, content: bytes, reason: str
) -> None:
    assert reason in change_image(file, content)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tiles": 258}, "tiles of turn 1, image 1 must be"),
        ({"tile_size": 4097}, "tile_size of turn 1, image 1 must be"),
        ({"tiles": 200, "tile_size": 4096}, "pixels in its tiles"),
        ({"tiles": 10, "tile_size": 4096}, "is not a PNG of 4096 x 40960 pixels"),
        ({"sha256": "A" * 64}, "is not a SHA-256"),
        ({"sha256": "0" * 64}, "it holds no pictures/0000"),
        ({"sha256": "/" * 64}, "is not a SHA-256"),
    ],
)
def test_images_that_are_described_wrongly_are_refused(
    file: Path, changes: dict[str, object], reason: str
) -> None:
    assert reason in change_image(file, b"", **changes)


def test_one_image_cannot_have_two_shapes(file: Path) -> None:
    def again(document: Any) -> None:
        first = document["turns"][0]["pictures"][0]
        document["turns"][0]["pictures"].append({**first, "tiles": 1})

    change_json(file, again)
    assert "turn 1, image 2 is said to have 1 tiles" in refused(file)


def test_images_that_are_too_large_together_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = turn_with(images=tuple(image(seed) for seed in range(3)))
    path = saved(tmp_path / "a", chat)
    monkeypatch.setattr(chat_file, "_MOST_IMAGE_BYTES", 3 * 2 * 27 - 1)
    assert "its images have more than" in refused(path)
    with pytest.raises(ChatFileError, match="its images have more than"):
        saved(tmp_path / "b", chat)


def test_an_image_larger_than_pillow_warns_of_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1)
    assert_equal(read_chat(saved(tmp_path / "a"), SECRET), conversation())


def test_a_secret_is_made_once_and_only_the_user_may_read_it(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "er"
    before = os.umask(0)
    try:
        secret = user_secret(directory)
    finally:
        os.umask(before)
    assert secret is not None
    assert len(secret) == 32
    assert user_secret(directory) == secret != user_secret(tmp_path / "other")
    assert [entry.name for entry in directory.iterdir()] == ["secret"]
    if os.name != "nt":
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "secret").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_damaged_secret_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    secret = user_secret(tmp_path)
    assert secret is not None
    assert len(secret) == 32
    assert user_secret(tmp_path) == secret
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_secret_that_others_could_read_is_closed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "secret").chmod(0o644)
    assert user_secret(tmp_path) == SECRET
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX users")
def test_a_secret_that_somebody_else_put_there_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "real").write_bytes(SECRET)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "secret").symlink_to(tmp_path / "real")
    (tmp_path / "secret").write_bytes(SECRET)
    with caplog.at_level(logging.WARNING):
        assert user_secret(tmp_path / "linked") is None
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert user_secret(tmp_path) is None
    assert "belongs to another user" in caplog.text
    assert len(caplog.records) == 2


def test_a_directory_that_cannot_be_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert user_secret(tmp_path / "file" / "cache") is None
    assert "are saved without what was computed" in caplog.text


def test_file_systems_without_links_have_a_secret_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    secret = user_secret(tmp_path)
    assert secret is not None
    assert user_secret(tmp_path) == secret
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_processes_that_ask_at_once_get_the_same_secret(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ayaedge.cache.user_secret import user_secret; print(flush=True);"
        "sys.stdin.read(1); print(user_secret(Path(sys.argv[1])).hex())"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    for run in runs:
        assert run.stdout is not None
        run.stdout.readline()
    assert len({run.communicate(b"x")[0] for run in runs}) == 1
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["secret"]


def large(count: int = 8, side: int = 1024) -> SavedChat:
    """Images of a white wall, which take little room in a file."""
    images = tuple(
        SavedImage.of(np.full((count, side, side, 3), shade, np.uint8), (9, 9)) for shade in (254, 255)
    )
    return SavedChat("x", None, (SavedTurn("?", images, "!", None, "stop"),))


def test_what_a_file_says_of_itself_is_looked_at_before_any_image_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = saved(tmp_path / "a", large()), []
    assert path.stat().st_size < 1_000_000
    monkeypatch.setattr(chat_file, "_tiles_of", lambda *_: pytest.fail("decoded"))

    def check(chat: SavedChat) -> None:
        seen.extend(image.tiles.shape for turn in chat.turns for image in turn.images)
        raise ChatFileError(f"{path} is for others")

    with pytest.raises(ChatFileError, match="is for others"):
        read_chat(path, SECRET, check=check)
    assert seen == [(8, 1024, 1024, 3)] * 2


def test_a_chat_of_another_model_takes_no_memory(demo_model: AyaVision, tmp_path: Path) -> None:
    path, reset = saved(tmp_path / "a", large()), Path("/proc/self/clear_refs")
    with pytest.raises(ChatFileError, match="in 8 tiles of 1024 pixels, made for another model"):
        demo_model.open_chat(path)
    if not reset.exists():
        pytest.skip("the system does not tell what a process has had at most")

    def kilobytes(name: str) -> int:
        (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
        return int(line.split()[1])

    reset.write_text("5")
    before = kilobytes("VmRSS")
    with pytest.raises(ChatFileError):
        demo_model.open_chat(path)
    assert (kilobytes("VmHWM") - before) * 1024 < 8_000_000 < 8 * 1024 * 1024 * 3


def test_an_image_that_is_far_too_small_for_its_tiles_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ayaedge writes them, even images of one colour take a 230th of their pixels."""
    path = saved(tmp_path / "a", large())
    members = members_of(path)
    for name in [name for name in members if name.endswith(".png")]:
        content = members[name][:8] + members[name][8:33]
        pixels = zlib.compress(b"".join(b"\0" + bytes([255]) * 3 * 1024 for _ in range(8 * 1024)), 9)
        body = b"IDAT" + pixels
        content += struct.pack(">I", len(pixels)) + body + struct.pack(">I", zlib.crc32(body))
        members[name] = content + struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    write_members(path, members)
    monkeypatch.setattr(chat_file, "_tiles_of", lambda *_: pytest.fail("decoded"))
    assert "is not a PNG of 1024 x 8192 pixels as ayaedge writes them: it is far too small" in refused(path)


def test_images_of_one_colour_are_read_again(tmp_path: Path) -> None:
    chat = large(2, 1024)
    assert_equal(read_chat(saved(tmp_path / "a", chat), SECRET), chat)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 100_000, "nested more than"),
        (b'{"format_version": 1, "x": ' + b"[" * 70 + b"]" * 70 + b"}", "nested more than"),
        (b'{"format_version": ' + b"9" * 400 + b"}", "400 digits"),
        (b'{"format_version": 1e999}', "too large a number"),
        (b'{"format_version": NaN}', "NaN"),
        (b'{"format_version": 1, "format_version": 1}', "twice"),
        (b'{"format_version": 1, "model": "\\ud800"}', "not valid Unicode"),
        (b'{"format_version": [1]}', "wrong type"),
        (b'"text"', "has no format_version"),
    ],
)
def test_json_that_nobody_writes_is_refused(file: Path, text: bytes, says: str) -> None:
    replace_json(file, text)
    assert says in refused(file)


def test_a_pipe_is_no_conversation_and_nobody_waits_for_it(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("the system has no named pipes")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in "pipe", "link":
        assert "it is not a file" in refused(tmp_path / name)
    with pytest.MonkeyPatch.context() as patch:  # it takes a file's place after it was looked at
        patch.setattr(Path, "is_file", lambda _: True)
        assert "not a regular file" in refused(tmp_path / "pipe")
