"""Nothing is filed under what a manifest claims: every file of a bundle is hashed before it counts."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ayaedge import NO_CACHE, AyaVision, BundleError, CacheOptions, ImageError, read_bundle
from ayaedge.bundle import Bundle, demo_bundle, hash_file
from ayaedge.cache import verified as module
from ayaedge.cache.verified import HASHES, FileHashes, open_verified, verified
from ayaedge.planning.profile import profile_path

IMAGE = Path(__file__).parents[3] / "examples" / "pictures" / "six-cells.png"


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process has found before does not count."""
    monkeypatch.setattr(module, "_known", {})


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, another_process: None) -> Iterator[list[int]]:
    """A number for each file that is really read."""
    read: list[int] = []
    plain = module.hash_stream

    def watched(stream: Any, *more: Any) -> str:
        read.append(os.fstat(stream.fileno()).st_size)
        return plain(stream, *more)

    monkeypatch.setattr(module, "hash_stream", watched)
    yield read


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The demonstration bundle, as another directory."""
    return Path(shutil.copytree(demo_bundle(), tmp_path / "copy"))


def make_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as unchanged for long: nobody can set a file's last change back."""
    monkeypatch.setattr(module, "_RACY", -(10**18))


def spoil(path: Path, at: int = -1000) -> None:
    """Other weights of the same size, which it has all the while."""
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x40]))


@pytest.mark.parametrize("name", ["decoder.gguf", "vision.onnx"])
@pytest.mark.parametrize("cached", [True, False])
def test_a_damaged_copy_is_found_at_its_first_load(
    copy: Path, tmp_path: Path, name: str, cached: bool
) -> None:
    cache = CacheOptions(directory=tmp_path / "cache") if cached else NO_CACHE
    AyaVision.load(cache=cache).close()  # the good one, of the same manifest
    spoil(copy / name)
    with pytest.raises(
        BundleError, match=rf"copy: {name} is damaged: its SHA-256 differs .*download it again"
    ):
        AyaVision.load(copy, cache=cache)
    assert AyaVision.load(cache=cache).ask("Hi", max_tokens=1).ids


def test_all_damaged_files_are_named_at_once(copy: Path) -> None:
    for name in ("decoder.gguf", "vision.onnx"):
        spoil(copy / name)
    with pytest.raises(BundleError, match=r"(?s)2 faults.*vision\.onnx is damaged.*decoder\.gguf is damaged"):
        AyaVision.load(copy)


def test_no_key_is_made_of_a_bundle_that_was_not_verified(copy: Path, tmp_path: Path) -> None:
    bundle = read_bundle(copy)
    with pytest.raises(AssertionError, match="not verified"):
        _ = bundle.hashes
    with pytest.raises(AssertionError, match="not verified"):
        _ = bundle.identity
    spoil(copy / "decoder.gguf")
    with pytest.raises(BundleError, match="damaged"):
        profile_path(tmp_path, bundle)


def test_what_a_manifest_says_of_using_the_files_belongs_to_every_key(copy: Path) -> None:
    """Two bundles of the same files, one of which normalises images in another way."""
    path = copy / "manifest.json"
    data = json.loads(path.read_text("utf-8"))
    data["tiling"]["mean"] = [0.4, 0.5, 0.5]
    path.write_text(json.dumps(data), "utf-8")
    with AyaVision.load() as good, AyaVision.load(copy) as other:
        assert good.bundle.hashes == other.bundle.hashes
        assert good.bundle.identity != other.bundle.identity
        with pytest.raises(ImageError, match="another model"):
            other.ask("?", images=good.encode_image(IMAGE))
    bundle = verified(read_bundle(demo_bundle()), None)
    measured = dataclasses.replace(bundle.manifest, parity={"kl": 0.1})
    assert dataclasses.replace(bundle, manifest=measured).identity == bundle.identity


def test_a_file_is_read_once_and_never_again_by_later_processes(
    copy: Path, tmp_path: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(monkeypatch)
    root = tmp_path / "cache"
    for _ in range(2):
        verified(read_bundle(copy), root)
    assert len(hashed) == 2
    monkeypatch.setattr(module, "_known", {})
    verified(read_bundle(copy), root)
    assert len(hashed) == 2
    if os.name != "nt":
        assert {path.stat().st_mode & 0o777 for path in (root / HASHES).iterdir()} == {0o600}
    monkeypatch.setattr(module, "_known", {})
    verified(read_bundle(copy), None)
    assert len(hashed) == 4  # without a cache, each process reads them


@pytest.mark.parametrize("how", ["in place", "by another file", "with its old time"])
def test_a_file_that_was_replaced_is_read_again(
    copy: Path, tmp_path: Path, how: str, another_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(monkeypatch)
    path, root = copy / "decoder.gguf", tmp_path / "cache"
    verified(read_bundle(copy), root)
    before = path.stat()
    if how == "by another file":
        shutil.copy2(path, tmp_path / "new")
        spoil(tmp_path / "new")
        (tmp_path / "new").replace(path)
    else:
        spoil(path)
    if how == "with its old time":
        if os.name == "nt":
            pytest.skip("Windows does not tell when a file was changed apart from its time")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BundleError, match="damaged"):
        verified(read_bundle(copy), root)


def test_what_was_just_written_is_not_remembered(copy: Path, tmp_path: Path, hashed: list[int]) -> None:
    """A clock that counts seconds would not show the next change."""
    os.utime(copy / "decoder.gguf")
    path = copy / "decoder.gguf"
    for _ in range(2):
        FileHashes(tmp_path / "cache").find(path)
    assert len(hashed) == 2
    assert not (tmp_path / "cache" / HASHES).exists()


def test_a_file_that_changes_while_it_is_read_is_not_verified(
    copy: Path, tmp_path: Path, another_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = module.hash_stream

    def slow(stream: Any, *more: Any) -> str:
        found = plain(stream, *more)
        time.sleep(0.02)  # longer than a tick of the file system's clock
        spoil(copy / "decoder.gguf")
        return found

    monkeypatch.setattr(module, "hash_stream", slow)
    with pytest.raises(BundleError, match="changed while it was read"):
        verified(read_bundle(copy), tmp_path / "cache")


def test_a_file_that_changes_between_its_check_and_its_use_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(directory: Path, root: Path | None) -> Bundle:
        found = open_verified(directory, root)
        shutil.copy2(copy / "decoder.gguf", copy / "new")
        (copy / "new").replace(copy / "decoder.gguf")
        return found

    monkeypatch.setattr("ayaedge.model.open_verified", late)
    with pytest.raises(BundleError, match=r"decoder\.gguf was changed while it was being loaded"):
        AyaVision.load(copy)


def planted(root: Path, path: Path, sha256: str) -> None:
    """What somebody who has no secret could write of a damaged file."""
    FileHashes(root).find(path)
    (entry,) = (root / HASHES).iterdir()
    entry.write_text(json.dumps({**json.loads(entry.read_text()), "sha256": sha256}))


def test_nobody_else_can_say_what_a_file_holds(
    copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    hashed: list[int],
) -> None:
    make_old(monkeypatch)
    path, good = copy / "decoder.gguf", hash_file(copy / "decoder.gguf")
    spoil(path)
    root = tmp_path / "cache"
    planted(root, path, good)
    monkeypatch.setattr(module, "_known", {})
    assert FileHashes(root).find(path)[1] != good
    assert "was not written by this user" in caplog.text
    # nor does what was found of one file count for another one
    other = tmp_path / "other"
    shutil.copy(demo_bundle() / "decoder.gguf", other)
    FileHashes(root).find(other)
    (mine,) = (entry for entry in (root / HASHES).iterdir() if good in entry.read_text())
    (its,) = (entry for entry in (root / HASHES).iterdir() if entry != mine)
    its.write_bytes(mine.read_bytes())
    monkeypatch.setattr(module, "_known", {})
    assert FileHashes(root).find(path)[1] != good


@pytest.mark.skipif(os.name == "nt", reason="POSIX files")
@pytest.mark.parametrize("kind", ["pipe", "large", "deep", "link", "directory"])
def test_whatever_lies_where_a_hash_is_remembered_costs_nothing(
    copy: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    another_process: None,
) -> None:  # fmt: skip
    make_old(monkeypatch)
    path, root = copy / "decoder.gguf", tmp_path / "cache"
    right = FileHashes(root).find(path)
    (entry,) = (root / HASHES).iterdir()
    entry.unlink()
    if kind == "pipe":
        os.mkfifo(entry)
    elif kind == "large":
        with entry.open("wb") as stream:
            stream.truncate(1 << 40)
    elif kind == "deep":
        entry.write_text("[" * 4000)
    elif kind == "link":
        entry.symlink_to("/dev/zero")
    else:
        entry.mkdir()
    monkeypatch.setattr(module, "_known", {})
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(FileHashes(root).find(path)), daemon=True)
    with caplog.at_level(logging.WARNING):
        thread.start()
        thread.join(20)
    assert found == [right]
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_only_so_many_files_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(monkeypatch)
    monkeypatch.setattr(module, "_MOST", 3)
    root = tmp_path / "cache"
    for number in range(5):
        (tmp_path / str(number)).write_text(str(number))
        FileHashes(root).find(tmp_path / str(number))
    assert len(list((root / HASHES).iterdir())) == 3


def test_reading_ends_when_the_program_is_interrupted(copy: Path) -> None:
    with pytest.raises(OSError, match="changed while it was read"):
        FileHashes(None).find(copy / "decoder.gguf", lambda: False)
