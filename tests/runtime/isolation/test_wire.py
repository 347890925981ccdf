"""What the process of a model may say: data of bounded size, and nothing else."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import isolated_children
import numpy as np
import pytest

from ayaedge import AyaEdgeError, BackendError, ContextLengthError, InvalidOptionError, Piece, TokenLogprob
from ayaedge.isolation import forms, process, wire
from ayaedge.isolation.forms import strictly
from ayaedge.isolation.records import level_wanted, take_record, take_warning
from ayaedge.isolation.wire import SharedMemory, Wire, WireError

MOST = 1000


def framed(message: bytes) -> bytes:
    return struct.pack("<I", len(message)) + message


def received(data: bytes, most: int = MOST) -> Any:
    return Wire(io.BytesIO(data), len, None).receive(lambda _: most)  # type: ignore[arg-type]


def sent(message: dict[str, Any], *arrays: Any) -> bytes:
    target = io.BytesIO()
    Wire(io.BytesIO(), target.write, None).send(message, arrays)
    return target.getvalue()


def test_a_message_and_its_arrays_come_as_they_were_sent() -> None:
    arrays = [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::2],
        np.float32([[0.5, math.inf]]),
        np.zeros(0, "u1"),
    ]
    message, found = received(sent({"a": "ä\ud800", "b": [1, None, 0.1]}, *arrays) + framed(b"{}"))
    assert message == {"a": "ä\ud800", "b": [1, None, 0.1]}
    assert all(np.array_equal(one, other) for one, other in zip(arrays, found, strict=True))


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_a_message_that_breaks_off_is_the_end(cut: int) -> None:
    data = sent({"a": 1}, np.arange(30, dtype=np.uint8))
    assert received(data[:cut]) is None


def announcing(*entry: Any) -> bytes:
    return json.dumps({"arrays": [list(entry)]}).encode()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff\xfe",
        b"[1]",
        b"3",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"cos\nsystem\n(S'true'\ntR.",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"arrays": 3}',
        b'{"arrays": [3]}',
        announcing("|O", [1], None),
        announcing("<f8", [1], None),
        announcing(["|u1"], [1], None),
        announcing("|u1", [-1, -1], None),
        announcing("|u1", [1.0], None),
        announcing("|u1", [True], None),
        announcing("|u1", "11", None),
        announcing("|u1", [1, 1, 1, 1, 1], None),
        announcing("|u1", [MOST + 1], None),
        announcing("<f4", [MOST], None),
        announcing("|u1", [1 << 62, 1 << 62], None),
        announcing("|u1", [1], 0),
        announcing("|u1", [1], -1),
        announcing("|u1", [1], "0"),
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(WireError):
        received(framed(message) + bytes(100))


def test_a_message_of_any_length_is_not_read() -> None:
    with pytest.raises(WireError, match="4294967295 bytes"):
        received(b"\xff" * 100)


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    memory = SharedMemory.create()
    if memory is None:
        pytest.skip("this system has no memory of this kind")
    yield memory
    memory.close()


def test_arrays_lie_in_shared_memory_as_long_as_they_are_held(
    shared: SharedMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_KEPT", 100)
    one, two = np.arange(5000, dtype=np.uint8), np.float32([[1, 2], [3, 4]])
    with shared.holding([one, two]) as outer, shared.holding([two]) as inner:
        data = io.BytesIO()
        Wire(io.BytesIO(), data.write, None).send({}, [one, two, two], [*outer, *inner])
        assert len(data.getvalue()) < 200
        _, found = Wire(io.BytesIO(data.getvalue()), len, shared).receive(lambda _: 10_000)  # type: ignore
        assert all(np.array_equal(a, b) for a, b in zip(found, [one, two, two], strict=True))
        assert os.fstat(shared.descriptor).st_size > 5000
    assert os.fstat(shared.descriptor).st_size == 100
    with shared.holding([]), shared.holding([]), shared.holding([one]):
        pass


def test_room_between_what_is_held_is_used_again(shared: SharedMemory) -> None:
    big, small = np.ones(1000, np.uint8), np.ones(10, np.uint8)
    first = shared.holding([big])
    first.__enter__()
    with shared.holding([small]) as place:
        assert place == [1000]
        first.__exit__(None, None, None)
        with shared.holding([small]) as before, shared.holding([small]) as behind:
            assert (before, behind) == ([0], [10])


def test_memory_that_is_cut_off_is_noticed(shared: SharedMemory) -> None:
    with shared.holding([np.ones(100, np.uint8)]) as (place,):
        os.ftruncate(shared.descriptor, 10)
        with pytest.raises(WireError):
            shared.read(memoryview(bytearray(100)), place)


def test_pieces_and_their_probabilities_come_back() -> None:
    logprob = TokenLogprob(3, b"\xff", -0.5, (TokenLogprob(4, b"", -math.inf),))
    piece = Piece("ä", (3, 4), (logprob,))
    back = forms.piece_of(json.loads(json.dumps(forms.piece_form(piece))))
    assert (back, back.ids, back.logprobs) == (piece, piece.ids, piece.logprobs)


@pytest.mark.parametrize(
    ("read", "form"),
    [
        (forms.piece_of, None),
        (forms.piece_of, ["a", [1.5], []]),
        (forms.piece_of, [b"a", [], []]),
        (forms.piece_of, ["a", [], [[1, "zz", 0.5, []]]]),
        (forms.piece_of, ["a", [], [[1, "", 0.5, [[1, "", 0.5, [[1, "", 0.5, []]]]]]]]),
        (forms.progress_of, ["elsewhere", 1, 2]),
        (forms.progress_of, ["vision", True, 2]),
        (forms.ids_of, ["1"]),
        (forms.ids_of, 3),
        (forms.number_of, "3"),
        (forms.error_of, []),
        (forms.error_of, {"kind": "ContextLengthError", "message": "x", "needed": "all"}),
        (take_record, ["ayaedge", "10", "x"]),
        (take_warning, ["UserWarning"]),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(read: Any, form: Any) -> None:
    with pytest.raises(WireError):
        strictly(read, form)


@dataclass(frozen=True)
class Figures:
    count: int


def test_fields_of_a_wrong_type_are_refused() -> None:
    assert forms.whole(Figures, {"count": 3}) == Figures(3)
    for data in ({"count": "3"}, {"count": True}, {}, [], None):
        with pytest.raises(WireError):
            strictly(forms.whole, Figures, data)


@pytest.mark.parametrize("kind", ["SystemExit", "list_faults", "Sequence", "os", "", None, 3, "AyaEdgeError"])
def test_an_error_of_another_class_is_no_such_object(kind: Any) -> None:
    error = forms.error_of({"kind": kind, "message": "x" * 10_000})
    assert type(error) is (AyaEdgeError if kind == "AyaEdgeError" else BackendError)
    assert len(str(error)) < 2000


def test_errors_come_back_with_what_they_say() -> None:
    long = ContextLengthError(needed=9, available=4, image_tokens=2)
    back = forms.error_of(json.loads(json.dumps(forms.error_form(long))))
    assert (type(back), str(back), vars(back)) == (ContextLengthError, str(long), vars(long))
    assert type(forms.error_of(forms.error_form(MemoryError()))).__name__ == "OutOfMemoryError"
    assert "KeyError: 'x'" in str(forms.error_of(forms.error_form(KeyError("x"))))
    assert type(forms.error_of(forms.error_form(InvalidOptionError("x")))) is InvalidOptionError


def test_records_make_no_loggers_and_warnings_only_known_kinds(caplog: pytest.LogCaptureFixture) -> None:
    before = set(logging.Logger.manager.loggerDict)
    take_record(["ayaedge.of.my.own %s", logging.WARNING, "100 %s"])
    take_record(["root", logging.WARNING, "x"])
    take_record(["ayaedge.llama", logging.DEBUG, "too low"])
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("ayaedge", "100 %s"),
        ("ayaedge", "x"),
    ]
    assert set(logging.Logger.manager.loggerDict) == before
    with pytest.warns(RuntimeWarning, match="x"):
        take_warning(["RuntimeWarning", "x"])
    with pytest.warns(UserWarning, match="y"):
        take_warning(["SystemExit", "y"])


def test_the_lowest_level_of_all_loggers_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    assert level_wanted() == logging.getLogger("ayaedge").getEffectiveLevel()
    with caplog.at_level(7, "ayaedge.llama"):
        assert level_wanted() == 7


@pytest.mark.skipif(sys.platform == "win32", reason="the children are made for POSIX")
@pytest.mark.parametrize("lie", ["garbage", "endless", "long", "wrong", "silence"])
def test_a_process_that_sends_something_else_is_ended(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    monkeypatch.setattr(process, "serve", getattr(isolated_children, lie))
    monkeypatch.setattr(process, "_MOST_WAITING", 100)
    monkeypatch.setattr(process, "_MOST_SAID", 100_000)
    child = process.ModelProcess()
    with pytest.raises(BackendError, match=r"has sent|exit code 3"):
        child.call("load", None, read=lambda form, _: forms.number_of(form), on_event=lambda *_: None)
    child.close()
    assert child._child.process.returncode is not None
