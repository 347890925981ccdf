from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from ayaedge import AyaVision, VisionOptions
from ayaedge.bundle import Bundle
from ayaedge.cache import verified
from ayaedge.cache.prepared_graphs import DATA, GRAPH, PreparedGraphs
from ayaedge.cache.user_secret import user_secret
from ayaedge.files import unfinished
from ayaedge.vision import session as vision_session
from ayaedge.vision.encoder import VisionEncoder
from ayaedge_export.exporter import export_checkpoint


def write(target: Path) -> None:
    (target / GRAPH).write_bytes(b"graph")
    (target / DATA).write_bytes(b"data")


def test_a_graph_that_was_made_is_found(tmp_path: Path) -> None:
    graphs = PreparedGraphs(tmp_path / "vision")
    assert graphs.find("a") is None
    made = graphs.make("a", 10, write)
    assert made == graphs.find("a") == tmp_path / "vision" / "a" / GRAPH
    assert [entry.name for entry in (tmp_path / "vision").iterdir()] == ["a"]
    graphs.forget("a")
    assert graphs.find("a") is None


@pytest.mark.parametrize("name", [GRAPH, DATA, "complete.json"])
@pytest.mark.parametrize("damage", ["cut", "touched", "removed"])
def test_a_damaged_graph_is_not_found_and_replaced(tmp_path: Path, name: str, damage: str) -> None:
    graphs = PreparedGraphs(tmp_path / "vision")
    graphs.make("a", 10, write)
    path = tmp_path / "vision" / "a" / name
    if damage == "removed":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif name == "complete.json":
        path.write_text("[]")
    else:
        os.utime(path, (1, 1))
    assert graphs.find("a") is None
    assert graphs.make("a", 10, write) == tmp_path / "vision" / "a" / GRAPH


def test_a_graph_that_cannot_be_written_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(target: Path) -> None:
        (target / GRAPH).write_bytes(b"half")
        raise OSError("no space left")

    with caplog.at_level(logging.WARNING):
        assert PreparedGraphs(tmp_path / "vision").make("a", 10, fail) is None
        assert PreparedGraphs(tmp_path / "vision").make("b", 1 << 60, write) is None
    assert "no space left" in caplog.text
    assert "needed on the disk" in caplog.text
    assert list((tmp_path / "vision").iterdir()) == []


def test_directories_are_private_and_abandoned_entries_go(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    user_secret(root)
    root.chmod(0o755)
    graphs = PreparedGraphs(root / "vision")
    old = unfinished(root / "vision" / "old")
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    graphs.make("a", 10, write)
    assert [entry.name for entry in (root / "vision").iterdir()] == ["a"]
    if os.name == "posix":
        assert root.stat().st_mode & 0o777 == 0o700


def test_only_the_graphs_used_last_are_kept(tmp_path: Path) -> None:
    graphs = PreparedGraphs(tmp_path / "vision")
    for number, name in enumerate("abc"):
        graphs.make(name, 10, write)
        os.utime(tmp_path / "vision" / name / "complete.json", (number, number))
    graphs.find("a")
    graphs.make("d", 10, write)
    assert sorted(entry.name for entry, _ in graphs.entries()) == ["a", "c", "d"]


@pytest.fixture(scope="module")
def split_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_checkpoint(tiny, tmp_path_factory.mktemp("split") / "b", vision="int8")


def test_a_prepared_graph_gives_the_same_embeddings(
    split_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vision_session, "_LARGE_GRAPH", 0)
    graphs = PreparedGraphs(tmp_path / "vision")
    manifest = split_bundle.manifest
    size = manifest.tiling.tile_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32)

    def embeddings(prepared: PreparedGraphs | None) -> np.ndarray:
        encoder = VisionEncoder(
            split_bundle.vision_path, manifest, VisionOptions(device="cpu"), prepared=prepared
        )
        return encoder.run(pixels)

    plain = embeddings(None)
    np.testing.assert_array_equal(embeddings(graphs), plain)
    ((entry, _),) = graphs.entries()
    np.testing.assert_array_equal(embeddings(graphs), plain)
    graphs.forget(entry.name)
    assert graphs.make(entry.name, 10, write)  # whole, and no graph
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(embeddings(graphs), plain)
    assert "was of no use and was removed" in caplog.text
    assert graphs.entries() == []


def test_a_small_graph_is_not_kept(tmp_path: Path) -> None:
    from ayaedge import CacheOptions

    with AyaVision.load(cache=CacheOptions(directory=tmp_path)):
        assert not (tmp_path / "ayaedge" / "vision").exists()


@pytest.mark.parametrize("name", [GRAPH, DATA])
def test_a_graph_whose_content_was_changed_at_its_size_and_time_is_not_used(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = PreparedGraphs(tmp_path / "vision")
    made = graphs.make("a", 10, write)
    assert made is not None
    path = made.with_name(name)
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert PreparedGraphs(tmp_path / "vision").find("a") is None
    assert f"the SHA-256 of {name} differs" in caplog.text


def test_a_graph_of_another_user_or_under_another_name_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    graphs, other = (PreparedGraphs(tmp_path / name / "vision") for name in ("mine", "his"))
    graphs.make("a", 10, write)
    other.make("b", 10, write)
    (graphs.directory / "a").rename(graphs.directory / "c")
    assert graphs.find("c") is None
    (other.directory / "b").rename(graphs.directory / "b")
    assert graphs.find("b") is None
    assert caplog.text.count("was not written by this user, under this name") == 2


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("name", [GRAPH, DATA, "complete.json"])
def test_a_pipe_in_the_place_of_a_file_makes_nobody_wait(tmp_path: Path, name: str) -> None:
    graphs = PreparedGraphs(tmp_path / "vision")
    made = graphs.make("a", 10, write)
    assert made is not None
    made.with_name(name).unlink()
    os.mkfifo(made.with_name(name))
    assert graphs.find("a") is None
    assert graphs.make("a", 10, write) == made


@pytest.mark.parametrize(
    "facts", ['{"files": [], "mark": "0"}', '{"files": {"a": 1}, "mark": 0}', "[]", '{"mark": "0"}']
)
def test_facts_of_another_form_are_of_no_graph(tmp_path: Path, facts: str) -> None:
    graphs = PreparedGraphs(tmp_path / "vision")
    made = graphs.make("a", 10, write)
    assert made is not None
    made.with_name("complete.json").write_text(facts)
    assert graphs.find("a") is None
    assert graphs.make("a", 10, write) == made


def test_a_graph_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer may lose its power at any time, and half a graph would have its whole size."""
    synced: list[tuple[int, bool]] = []
    plain, vision = os.fsync, tmp_path / "vision"

    def watched(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, bool(list(vision.glob("*/complete.json")))))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    made = PreparedGraphs(vision).make("a", 10, write)
    assert made is not None
    inodes = [made.with_name(name).stat().st_ino for name in (GRAPH, DATA, "complete.json")]
    assert [entry for entry in synced if entry[0] in inodes] == [(inode, False) for inode in inodes]


def test_a_graph_is_hashed_once_and_not_at_later_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = PreparedGraphs(tmp_path / "vision")
    monkeypatch.setattr(verified, "_RACY", -(10**18))
    graphs.make("a", 10, write)
    monkeypatch.setattr(verified, "_known", {})  # as in another process

    def refuse(*_: object) -> str:
        raise AssertionError("it was read again")

    monkeypatch.setattr(verified, "hash_stream", refuse)
    assert PreparedGraphs(tmp_path / "vision").find("a") is not None
