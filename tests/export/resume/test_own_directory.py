"""Others may write where a bundle shall lie: nothing of theirs is taken up, followed, changed or removed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ayaedge import ExportError, read_bundle
from ayaedge.bundle import demo_bundle
from ayaedge_export.resume.staged_bundle import check_target, staged_bundle, staging_place, what_is_left
from ayaedge_export.resume.state_file import StateFile

pytestmark = pytest.mark.skipif(os.name == "nt", reason="owners, modes and links of POSIX")
NOBODY = 65534
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make what another user owns"
)


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory like /tmp."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A directory of ours that no export has any business with."""
    directory = tmp_path / "precious"
    directory.mkdir()
    (directory / "letter.txt").write_text("Dear Ada")
    (directory / "decoder.gguf").write_text("another one")
    return directory


def stage(target: Path, *, force: bool = False) -> None:
    """Put the demonstration model in the place of `target`, as an export does."""
    with staged_bundle(target, "fingerprint", force=force) as journal:
        journal.begin()
        StateFile(journal.directory / "../state.npz", "mark").write({"layer": 1}, {})
        for path in sorted(demo_bundle().iterdir()):
            shutil.copyfile(path, journal.directory / path.name)
            journal.add_file(path.name)


def intact(precious: Path) -> bool:
    found = {path.name: path.read_text() for path in precious.iterdir()}
    return found == {"letter.txt": "Dear Ada", "decoder.gguf": "another one"}


def _pipe(path: Path, _precious: Path) -> None:
    os.mkfifo(path)


def _link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def _link_to_file(path: Path, precious: Path) -> None:
    path.symlink_to(precious / "letter.txt")


def _second_name(path: Path, precious: Path) -> None:
    os.link(precious / "letter.txt", path)


@pytest.mark.parametrize(
    ("place", "plant"),
    [
        ("bundle", _link),
        ("old", _link),
        ("discarded", _link),
        ("lock", _link_to_file),
        ("journal.jsonl", _link_to_file),
        ("journal.jsonl", _second_name),
        ("journal.jsonl", _pipe),
        ("journal.new", _link_to_file),
        ("state.new", _link_to_file),
        ("state.npz", _link_to_file),
        ("bundle/decoder.gguf", _link_to_file),
        ("bundle/decoder.gguf", _second_name),
        ("bundle/deep", _link),
    ],
)
def test_a_link_among_unfinished_files_goes_and_what_it_points_to_stays(
    shared: Path, precious: Path, place: str, plant: Callable[[Path, Path], None]
) -> None:
    planted = staging_place(shared / "out") / place
    planted.parent.mkdir(parents=True)
    plant(planted, precious)
    stage(shared / "out")
    assert intact(precious)
    assert not (shared / "out").is_symlink()
    assert read_bundle(shared / "out").manifest == read_bundle(demo_bundle()).manifest
    assert [path.name for path in shared.iterdir()] == ["out"]


def test_a_link_in_place_of_the_directory_of_unfinished_files_is_refused(
    shared: Path, precious: Path
) -> None:
    staging_place(shared / "out").symlink_to(precious)
    with pytest.raises(ExportError, match="is not a directory: remove it"):
        stage(shared / "out")
    assert intact(precious)


@needs_root
def test_what_another_user_has_prepared_is_not_taken_up(shared: Path, precious: Path) -> None:
    staging = staging_place(shared / "out")
    staging.mkdir()
    (staging / "bundle").symlink_to(precious)
    os.chown(staging, NOBODY, NOBODY)
    with pytest.raises(ExportError, match=r"\.out\.partial, .*, belongs to another user: remove it"):
        stage(shared / "out")
    assert (staging / "bundle").is_symlink()
    assert intact(precious)


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_what_others_could_write_into_is_not_taken_up(shared: Path, mode: int) -> None:
    staging = staging_place(shared / "out")
    staging.mkdir()
    staging.chmod(mode)
    with pytest.raises(ExportError, match="may be written by other users: remove it"):
        stage(shared / "out")
    assert list(shared.iterdir()) == [staging]


def test_only_we_look_into_what_is_unfinished_and_others_into_what_is_finished(shared: Path) -> None:
    staging = staging_place(shared / "out")
    staging.mkdir(mode=0o755)  # as earlier versions made it
    with staged_bundle(shared / "out", "fingerprint") as journal:
        assert stat.S_IMODE(staging.stat().st_mode) == 0o700
        journal.begin()
        for path in demo_bundle().iterdir():
            shutil.copyfile(path, journal.directory / path.name)
    assert stat.S_IMODE((shared / "out").stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in (shared / "out").iterdir()} == {0o644}


def test_nothing_is_exported_to_where_anybody_may_exchange_it(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ExportError, match=r"any user may exchange .*/open \(mode 777\): choose a target"):
        stage(tmp_path / "open" / "out")
    assert list((tmp_path / "open").iterdir()) == []
    (tmp_path / "open").chmod(0o775)  # a group that was given the right is trusted
    stage(tmp_path / "open" / "out")


@needs_root
def test_a_target_that_another_user_has_made_a_link_is_not_followed(shared: Path, precious: Path) -> None:
    shutil.copytree(demo_bundle(), precious / "bundle")
    (shared / "out").symlink_to(precious / "bundle")
    check_target(shared / "out", force=True)
    os.lchown(shared / "out", NOBODY, NOBODY)
    with pytest.raises(ExportError, match="is a link that another user has made"):
        stage(shared / "out", force=True)
    (shared / "new").symlink_to(precious / "new")
    os.lchown(shared / "new", NOBODY, NOBODY)
    with pytest.raises(ExportError, match="is a link that another user has made"):
        stage(shared / "new")
    assert not (precious / "new").exists()


def test_an_old_bundle_that_holds_links_is_put_back_as_it_was(shared: Path, precious: Path) -> None:
    staging = staging_place(shared / "out")
    shutil.copytree(demo_bundle(), staging / "old")
    (staging / "old" / "vision.onnx.data").symlink_to(precious / "letter.txt")
    with pytest.raises(ExportError, match="out exists"):
        stage(shared / "out")
    assert (shared / "out" / "vision.onnx.data").is_symlink()
    stage(shared / "out", force=True)
    assert intact(precious)


def test_what_is_left_says_nothing_of_what_is_no_journal(shared: Path) -> None:
    staging_place(shared / "out").mkdir()
    os.mkfifo(staging_place(shared / "out") / "journal.jsonl")
    assert what_is_left(shared / "out") == "nothing was left behind"
