"""Processes that only pose as an isolated model's: what they send is not what they should."""

from __future__ import annotations

import json
import os
import struct
import sys
from typing import Any


def _say(message: Any) -> None:
    text = json.dumps(message).encode()
    os.write(1, struct.pack("<I", len(text)) + text)


def _begin() -> None:
    _say({"event": "hello"})
    os.read(0, 1)  # the first call


def garbage(shared: int | None) -> None:
    _begin()
    os.write(1, b"\x80\x04\x95 is how a pickle begins")
    sys.stdin.read()


def endless(shared: int | None) -> None:
    _begin()
    while True:
        _say({"call": 1, "event": "piece", "value": ["", [], []]})


def long(shared: int | None) -> None:
    _begin()
    for _ in range(20):  # few, but long
        _say({"call": 1, "event": "piece", "value": ["x" * 10_000, [], []]})
    sys.stdin.read()


def wrong(shared: int | None) -> None:
    _begin()
    _say({"call": 1, "result": "a number"})
    sys.stdin.read()


def silence(shared: int | None) -> None:
    _begin()
    os._exit(3)
