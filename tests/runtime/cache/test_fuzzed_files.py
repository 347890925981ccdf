"""Files of the cache that were changed in any way: they count as they were written, or not at all.

In this process: nothing native sees a byte of them before they carry this user's mark.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ayaedge import DecoderOptions
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.cache import verified
from ayaedge.cache.prepared_graphs import DATA, GRAPH, PreparedGraphs
from ayaedge.cache.stores import DiskStates
from ayaedge.cache.verified import HASHES, FileHashes
from ayaedge.hardware.probes import Result, Verdicts
from ayaedge.hardware.speeds import Speeds
from ayaedge.planning.profile import Profile, Settings, load_profile, profile_path, save_profile

FEW, MANY = 60, 2000
"""Cases of each of the five kinds."""
KEYS = "aa", "bb"
STRANGE = [
    None, True, -1, 0, 10**19, 10**400, 1e300, "", "NaN", "\ud800", [], {}, [[[[]]]], "x" * 3000, math.inf, math.nan,
]  # fmt: skip


def mutated(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Other bytes: cut, flipped, filled, moved, made longer, exchanged; or JSON with another value."""
    at, length = rng.randrange(len(content) + 1), rng.choice([1, 2, 16, len(content)])
    kind = rng.randrange(9)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + bytes(length) + content[at + length :]
    if kind == 2:
        return content[:at] + rng.randbytes(length) + content[at:]
    if kind == 3:
        return rng.choice(others)
    if kind == 4:
        return content[:at] + rng.choice(others)[at:]
    if kind == 5:
        return rng.choice(
            [b"[" * 5000, b'{"a":' * 5000, b"9" * 5000, b"\xff\xfe", b"NaN", b"[1e999]", b"{}", b"null"]
        )
    if kind == 6:
        return content[at:] + content[:at]
    if kind == 7 and content[:1] == b"{":
        return strange_json(rng, json.loads(content))
    flipped = bytearray(content or b"\0")
    flipped[at % len(flipped)] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def strange_json(rng: random.Random, value: dict[str, Any]) -> bytes:
    """An object in which one value, at any depth, is another one, or gone."""
    inside: dict[str, Any] = value
    name = rng.choice(list(inside))
    while isinstance(inside[name], dict) and inside[name] and rng.random() < 0.8:
        inside = inside[name]
        name = rng.choice(list(inside))
    if rng.random() < 0.2:
        del inside[name]
    else:
        inside[name] = rng.choice(STRANGE)
    return json.dumps(value).encode(errors="replace")


class Case:
    """Files that were written, and what reading them must give if it gives anything."""

    def __init__(self, files: list[Path], read: Callable[[], Any], right: Callable[[Any], bool]) -> None:
        self.files, self.read, self.right = files, read, right
        self.written = {path: path.read_bytes() for path in files}
        assert self.right(self.read())
        assert self.read() is not None

    def fuzz(self, rng: random.Random) -> bool:
        """Change one of the files; whether what it holds now was refused."""
        path = rng.choice(self.files)
        others = [content for other, content in self.written.items() if other != path]
        content = mutated(rng, self.written[path], others)
        status = path.stat()
        path.write_bytes(content)
        if rng.random() < 0.5:  # at the time that it had
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        found = self.read()
        assert found is None or self.right(found), content[:200]
        self.restore()
        return found is None

    def restore(self) -> None:
        for path, content in self.written.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def states(root: Path) -> Case:
    store = DiskStates(root, 1 << 30)
    kept = {
        key: np.random.default_rng(number).integers(0, 256, 300, np.uint8) for number, key in enumerate(KEYS)
    }
    for key, state in kept.items():
        store.save(key, state)

    def read() -> dict[str, Any] | None:
        return {key: state for key in KEYS if (state := store.load(key)) is not None} or None

    def right(found: dict[str, Any]) -> bool:
        return all(np.array_equal(state, kept[key]) for key, state in found.items())

    return Case([root / f"{key}.state" for key in KEYS], read, right)


def graphs(root: Path) -> Case:
    prepared = PreparedGraphs(root / "vision")

    def write(target: Path) -> None:
        (target / GRAPH).write_bytes(b"the graph")
        (target / DATA).write_bytes(b"its data" * 9)

    for key in KEYS:
        prepared.make(key, 10, write)
    files = [root / "vision" / key / name for key in KEYS for name in (GRAPH, DATA, "complete.json")]
    times = {path: path.stat().st_mtime_ns for path in files}
    case: list[Case] = []

    def read() -> list[bytes] | None:
        if case:  # what was restored has its old time again
            for path, content in case[0].written.items():
                if path.read_bytes() == content:
                    os.utime(path, ns=(times[path], times[path]))
        found = [graph for key in KEYS if (graph := prepared.find(key)) is not None]
        return [graph.read_bytes() + graph.with_name(DATA).read_bytes() for graph in found] or None

    case.append(Case(files, read, lambda found: set(found) == {b"the graph" + b"its data" * 9}))
    return case[0]


def profiles(root: Path) -> Case:
    bundle = read_bundle(demo_bundle())
    path = profile_path(root, bundle)
    save_profile(path, Profile(Speeds(1.0, 0.1, 0.0, 0.2, 0.0), Settings(False, 3, 2, 128)))
    other = path.with_name("other.json")
    save_profile(other, Profile(Speeds(2.0, 0.2, 0.1, 0.3, 0.1)))

    def right(found: Profile) -> bool:
        """One that every use of a profile can take."""
        applied = found.apply(DecoderOptions())
        seconds = found.speeds.prefill(10**6, 10**6) + found.speeds.answer(10**6, 10**6)
        return applied.threads != 0 and all(map(math.isfinite, (seconds, *astuple(found.speeds))))

    return Case([path, other], lambda: load_profile(path), right)


def verdicts(root: Path) -> Case:
    known = Verdicts(root)
    known.remember("this", Result(death="SIGILL", said="oh"))
    known.remember("that", Result())
    files = sorted((root / "machine").iterdir())
    return Case(
        files,
        lambda: known.recall("this"),
        lambda found: isinstance(found.said, str) and isinstance(found.death, (str, type(None))),
    )


def hashes(root: Path) -> Case:
    contents = {root.parent / name: name.encode() * 100 for name in "xy"}
    for path, content in contents.items():
        path.write_bytes(content)
    expected = {path: FileHashes(root).find(path) for path in contents}

    def read() -> Any:
        verified._known.clear()
        return {path: FileHashes(root).find(path) for path in contents}

    return Case(sorted((root / HASHES).iterdir()), read, lambda found: found == expected)


KINDS = [states, graphs, profiles, verdicts, hashes]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_changed_file_of_the_cache_counts_as_it_was_written_or_not_at_all(
    tmp_path: Path, kind: Callable[[Path], Case], cases: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_RACY", -(10**18))
    monkeypatch.setattr(verified, "_known", {})
    root = tmp_path / "cache"
    case, refused = kind(root), 0
    for seed in itertools.islice(itertools.count(), cases):
        refused += case.fuzz(random.Random(f"{kind.__name__} {seed}"))
    if kind is profiles or kind is verdicts:
        assert refused > cases // 10  # the other half changed the file that is not read
    shutil.rmtree(root)
