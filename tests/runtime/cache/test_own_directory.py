"""The cache lives in a directory of its own name, touches nothing else, and uses nothing that others have made."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import numpy as np
import platformdirs
import pytest
from typer.testing import CliRunner

from ayaedge import AyaVision, CacheOptions
from ayaedge.cache import verified
from ayaedge.cache.options import cache_directory
from ayaedge.cache.prepared_graphs import DATA, GRAPH, PreparedGraphs
from ayaedge.cache.stores import DiskStates
from ayaedge.cache.user_secret import user_secret
from ayaedge.cli.cache import app
from ayaedge.files import make_private, unfinished

STATE = np.arange(1000, dtype=np.uint8)
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")


def contents(directory: Path) -> dict[str, tuple[int, int]]:
    """Of everything below a directory its mode and time."""
    return {
        str(path.relative_to(directory)): (path.lstat().st_mode, path.lstat().st_mtime_ns)
        for path in directory.rglob("*")
    }


def write_graph(target: Path) -> None:
    for name in (GRAPH, DATA):
        (target / name).write_bytes(b"graph")


def put_other_things(directory: Path) -> None:
    """What somebody else may keep under names like ours, unfinished things over an hour old among them."""
    for name in (
        "vision/mine/graph",
        "machine/mine.json",
        "synthetic/mine/x",
        "hashes/mine.json",
        "d.partial/x",
    ):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("mine")
    for name in ("thesis.partial", ".thesis.partial", "notes.state", "vision/thesis.partial", "secret"):
        (directory / name).write_text("mine")
        os.utime(directory / name, (1, 1))


@posix
def test_other_things_in_the_named_directory_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    put_other_things(shared)
    shared.chmod(0o1777)
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(shared))
    before = contents(shared)
    with AyaVision.load() as model:
        model.ask("Hi", max_tokens=1)
        root = model._engine.cache_root
    assert root == cache_directory() == shared / "ayaedge"
    DiskStates(root, 10_000).save("aa", STATE)
    PreparedGraphs(root / "vision").make("bb", 10, write_graph)
    for command in (["prune", "--to", "0"], ["clear"]):
        assert CliRunner().invoke(app, command).exit_code == 0
    after = contents(shared)
    assert {name for name in after if not name.startswith("ayaedge")} == before.keys()
    assert {name: after[name] for name in before} == before
    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777
    assert [path.name for path in root.iterdir()] == ["secret"]


def test_only_names_of_our_form_are_ever_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the cache's own directory, which a clone of the repository could be."""
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path))
    root = tmp_path / "ayaedge"
    user_secret(root)
    put_other_things(root / "sub")
    for entry in (root / "sub").iterdir():
        if entry.name != "secret":
            entry.rename(root / entry.name)
    before = contents(root)
    DiskStates(root, 10_000).save("aa", STATE)
    PreparedGraphs(root / "vision").make("bb", 10, write_graph)
    left = unfinished(root / "aa")
    left.write_text("half")
    for command in (["prune", "--to", "0"], ["clear"]):
        assert CliRunner().invoke(app, command).exit_code == 0
    assert contents(root).keys() == before.keys()


def test_a_directory_whose_name_only_looks_like_ours_is_left_alone(tmp_path: Path) -> None:
    graphs = PreparedGraphs(tmp_path / "vision")
    assert graphs.make("bb", 10, write_graph)
    for name in ("2024", "bb2"):
        (tmp_path / "vision" / name / "of").mkdir(parents=True)
        (tmp_path / "vision" / name / "photo.jpg").write_bytes(b"mine")
    graphs.clear()
    assert sorted(path.name for path in (tmp_path / "vision").iterdir()) == ["2024", "bb2"]
    assert (tmp_path / "vision" / "2024" / "photo.jpg").read_bytes() == b"mine"


def test_the_systems_directory_carries_our_name_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AYAEDGE_CACHE_DIR")
    found = cache_directory()
    assert found == Path(platformdirs.user_cache_dir("ayaedge", appauthor=False))
    assert found is not None
    assert [part.lower() for part in found.parts].count("ayaedge") == 1


def foreign(directory: Path, how: str) -> None:
    """Let it be of another user, or open to others."""
    if how == "writable by others":
        directory.chmod(0o777)
    elif how == "writable by a group":
        directory.chmod(0o770)
    elif os.geteuid() != 0:
        pytest.skip("only root can give files away")
    elif how == "another user's":
        os.chown(directory, 12345, 12345)
    else:
        (directory.parent / "real").mkdir(mode=0o700)
        directory.rename(directory.parent / "old")
        directory.symlink_to(directory.parent / "real")
        os.chown(directory, 12345, 12345, follow_symlinks=False)


@posix
@pytest.mark.parametrize(
    "how", ["writable by others", "writable by a group", "another user's", "another user's link to ours"]
)
def test_a_directory_that_is_not_the_users_own_is_refused_aloud_and_not_used(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    options, root = CacheOptions(directory=tmp_path), tmp_path / "ayaedge"
    AyaVision.load(cache=options).close()
    DiskStates(root, 10_000).save("aa", STATE)
    foreign(root, how)
    before = contents(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.WARNING), AyaVision.load(cache=options) as model:
        assert model.ask("Hi", max_tokens=1).ids
        assert model._engine.cache_root is None
    (record,) = caplog.records
    expected = "others may write into it" if how.startswith("writable") else "belongs to another user"
    assert expected in record.getMessage()
    assert "AYAEDGE_CACHE_DIR names another directory" in record.getMessage()
    assert contents(tmp_path) == before
    assert options.root is None
    with pytest.raises(PermissionError, match=expected):
        make_private(root)
    assert DiskStates(root, 10_000).load("aa") is None
    DiskStates(root, 10_000).save("bb", STATE)
    assert contents(tmp_path) == before


@posix
def test_the_commands_refuse_such_a_directory_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path))
    root = tmp_path / "ayaedge"
    DiskStates(root, 10_000).save("aa", STATE)
    root.chmod(0o777)
    listed = CliRunner().invoke(app, ["ls", "--json"])
    assert json.loads(listed.stdout) == {"directory": None, "states": [], "vision_graphs": []}
    cleared = CliRunner().invoke(app, ["clear"])
    assert "others may write into it (chmod 700" in " ".join(cleared.stderr.split())
    assert (root / "aa.state").exists()


@posix
def test_a_directory_that_only_others_may_read_is_closed_if_it_is_ours(tmp_path: Path) -> None:
    ours, other = tmp_path / "ours", tmp_path / "other"
    for directory in (ours, other):
        directory.mkdir(mode=0o755)
        directory.chmod(0o755)
    (other / "something.py").touch()
    for directory in (ours, other):
        make_private(directory)
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700
    assert stat.S_IMODE(other.stat().st_mode) == 0o755


@posix
def test_only_the_user_can_read_what_is_kept(
    tmp_path: Path, wide_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever his umask is: states, hashes, measurements, prepared graphs and saved conversations."""
    image = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"
    monkeypatch.setattr(verified, "_RACY", -(10**18))  # the bundle was just written
    monkeypatch.setattr(verified, "_known", {})
    before = os.umask(0)
    try:
        with AyaVision.load(wide_bundle, cache=CacheOptions(directory=tmp_path / "cache")) as model:
            chat = model.chat()
            chat.ask("?", images=image, max_tokens=2)
            model.measure()
            chat.save(tmp_path / "cache" / "chat.ayachat")
        PreparedGraphs(tmp_path / "cache" / "ayaedge" / "vision").make("aa", 10, write_graph)
    finally:
        os.umask(before)
    root = tmp_path / "cache" / "ayaedge"
    kinds = {path.suffix or path.name for path in root.rglob("*") if path.is_file()}
    assert kinds >= {".state", ".json", "secret", ".onnx", ".data"}
    assert {path.relative_to(root).parts[0] for path in root.rglob("*.json")} == {
        "machine",
        "hashes",
        "vision",
    }
    closed = [root, *(path for path in root.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in closed} == {0o700}
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.parent.name != "vision"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "cache" / "chat.ayachat").stat().st_mode) == 0o600
