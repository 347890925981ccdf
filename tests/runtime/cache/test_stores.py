"""Stores of decoder states: limits, damage, privacy, several processes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ayaedge import NO_CACHE, CacheOptions, InvalidOptionError
from ayaedge.cache.options import cache_directory, prepared_graphs, state_store
from ayaedge.cache.prepared_graphs import DATA, GRAPH, PreparedGraphs
from ayaedge.cache.stores import DiskStates, RecentArrays
from ayaedge.files import unfinished


def state(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> DiskStates:
    return DiskStates(tmp_path / "deep" / "states", 10_000)


def names(store: DiskStates) -> list[str]:
    """Of everything but the user's secret."""
    return sorted(path.name for path in store.directory.iterdir() if path.name != "secret")


def test_what_was_saved_is_loaded_also_by_another_process(store: DiskStates) -> None:
    assert store.load("aa") is None
    store.save("aa", state(1000))
    assert store.holds("aa")
    loaded = DiskStates(store.directory, 10_000).load("aa")
    assert loaded is not None
    assert np.array_equal(loaded, state(1000))


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_only_the_user_may_read_it(store: DiskStates) -> None:
    before = os.umask(0)
    try:
        store.save("aa", state(10))
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in store.directory.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_removed_and_never_used(store: DiskStates, damage: str) -> None:
    store.save("aa", state(1000))
    (path,) = store.directory.glob("*.state")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[500] ^= 1
    changed = {"truncated": content[:-1], "flipped": content, "empty": b"", "foreign": b"GGUF" + bytes(2000)}
    path.write_bytes(changed[damage])
    assert store.load("aa") is None
    assert names(store) == []
    store.save("aa", state(1000))
    assert store.load("aa") is not None


def test_the_least_recently_used_goes_first(store: DiskStates) -> None:
    for number, key in enumerate(("aa", "bb", "cc")):
        store.save(key, state(3000, number))
        os.utime(store.directory / f"{key}.state", (number, number))
    store.load("aa")
    store.save("dd", state(3000))
    assert names(store) == ["aa.state", "cc.state", "dd.state"]
    assert sum(path.stat().st_size for path in store.directory.glob("*.state")) <= 10_000
    store.save("ee", state(10_001))  # larger than all of them together: nothing has to go for it
    assert names(store) == ["aa.state", "cc.state", "dd.state"]
    assert [entry.path.name for entry in store.prune(4000)] == ["cc.state", "aa.state"]


def test_what_a_killed_process_left_is_tidied_up_but_not_what_is_being_written(store: DiskStates) -> None:
    store.save("aa", state(10))
    old, new = (unfinished(store.directory / name) for name in ("bb", "cc"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    store.prune(10_000)
    assert names(store) == [new.name, "aa.state"]


def test_a_directory_that_cannot_be_written_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    store = DiskStates(tmp_path / "file", 10_000)
    store.save("aa", state(10))
    assert "nothing is kept" in caplog.text
    assert store.load("aa") is None
    assert store.entries() == []


def test_arrays_in_memory_keep_to_their_limit() -> None:
    recent = RecentArrays(100)
    for number in range(3):
        recent.save(str(number), np.zeros(40, np.uint8))
        recent.load("0")
    assert [recent.holds(str(number)) for number in range(3)] == [True, False, True]
    recent.save("large", np.zeros(101, np.uint8))
    assert recent.holds("0")
    assert not recent.holds("large")


def test_options_choose_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(state_store(NO_CACHE), RecentArrays)
    stored = state_store(CacheOptions(directory=tmp_path))
    assert isinstance(stored, DiskStates)
    assert stored.directory == tmp_path / "ayaedge"
    monkeypatch.delenv("AYAEDGE_CACHE_DIR")
    assert "ayaedge" in cache_directory().parts
    with pytest.raises(InvalidOptionError, match="disk_bytes"):
        CacheOptions(disk_bytes=-1)


def _no_entry(*_: object, **__: object) -> str:
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize(
    "found", [_no_entry, lambda *_, **__: "~/.cache/ayaedge"], ids=["raises", "unresolved"]
)
def test_without_a_home_directory_states_stay_in_memory(
    found: Callable[..., str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Both that versions of platformdirs do for a user without an entry."""
    monkeypatch.delenv("AYAEDGE_CACHE_DIR")
    monkeypatch.setattr("platformdirs.user_cache_dir", found)
    assert cache_directory() is None
    options = CacheOptions().settled()
    assert isinstance(state_store(options), RecentArrays)
    assert prepared_graphs(options) is options.root is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "AYAEDGE_CACHE_DIR" in caplog.text
    assert CacheOptions(directory=Path("given")).root == Path("given") / "ayaedge"


def test_a_directory_that_cannot_be_made_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    options = CacheOptions(directory=tmp_path / "file" / "cache").settled()
    assert isinstance(state_store(options), RecentArrays)
    assert options.settled() is options
    assert len(caplog.records) == 1
    assert CacheOptions(directory=tmp_path / "new").settled().root == tmp_path / "new" / "ayaedge"
    assert len(caplog.records) == 1


def test_the_commands_list_prune_and_clear(tmp_path: Path) -> None:
    def ayaedge(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "AYAEDGE_CACHE_DIR": str(tmp_path / "kept")}
        return subprocess.run(
            [sys.executable, "-m", "ayaedge", "cache", *arguments],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip

    assert json.loads(ayaedge("ls", "--json").stdout)["states"] == []
    store = DiskStates(tmp_path / "kept" / "ayaedge", 10_000_000)
    for number, key in enumerate(("aa", "bb")):
        store.save(key, state(2_000_000, number))
        os.utime(store.directory / f"{key}.state", (number, number))
    assert [item["file"] for item in json.loads(ayaedge("ls", "--json").stdout)["states"]] == [
        "aa.state",
        "bb.state",
    ]
    assert "2.0 MB" in ayaedge("ls").stdout
    assert "removed 1 states" in ayaedge("prune", "--to", "0.003").stderr
    assert names(store) == ["bb.state"]

    def write(target: Path) -> None:
        for name in (GRAPH, DATA):
            (target / name).write_bytes(bytes(1000))

    PreparedGraphs(store.directory / "vision").make("cc", 2000, write)
    (graph,) = json.loads(ayaedge("ls", "--json").stdout)["vision_graphs"]
    assert graph["graph"] == "cc"
    assert graph["bytes"] > 2000
    assert "vision graph" in ayaedge("ls").stdout
    assert "removed 1 states" in ayaedge("clear").stderr
    assert [path.name for path in store.directory.iterdir()] == ["secret"]  # which saved chats still need
