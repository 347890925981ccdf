"""Writing a bundle so that none ever stands half-finished under its final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from ayaedge.bundle import FILES, MANIFEST, FileInfo, Manifest, hash_file, read_bundle
from ayaedge.errors import CheckpointError, ExportError
from ayaedge_export.journal import Journal

_OLD = "old"


@contextmanager
def staged_bundle(
    target: Path, fingerprint: str, *, force: bool = False, resume: bool = True
) -> Iterator[Journal]:
    """A directory beside `target` whose bundle takes that name when the block ends well.

    Yields the journal, whose `directory` is the bundle's; with `resume` it holds what an interrupted export of the
    same fingerprint has finished. An existing target is an error unless `force`; then it is replaced only after the
    new one is complete and has been read. When the block fails the target is as it was, and finished pieces stay
    for the next try, unless the checkpoint itself is at fault. ExportError if another export has the same target.
    """
    check_target(target, force=force)
    target = target.resolve()  # what a link points to is replaced, not the link
    staging = staging_place(target)
    with _alone(staging, target):
        journal = None
        try:
            _put_back(staging / _OLD, target)  # a run was killed while it exchanged the bundles
            check_target(target, force=force)
            journal = Journal(staging / "journal.jsonl", staging / "bundle", fingerprint, resume=resume)
            yield journal
            read_bundle(journal.directory)
            _take_place(journal.directory, target, staging / _OLD, force=force)
        except BaseException as error:
            if isinstance(error, CheckpointError) or not (journal and journal.pieces):
                shutil.rmtree(staging, ignore_errors=True)
            raise
        shutil.rmtree(staging, ignore_errors=True)


def staging_place(target: Path) -> Path:
    """Where an unfinished bundle lies that shall become `target`."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def _alone(staging: Path, target: Path) -> Iterator[None]:
    """Make the staging directory and hold its lock, which the system releases when the process ends in any way."""
    staging.mkdir(parents=True, exist_ok=True)
    lock = FileLock(staging / "lock", blocking=False)
    try:
        lock.acquire()
    except (Timeout, FileNotFoundError):  # not found: the other one has just finished
        raise ExportError(
            f"another export to {target} is at work; wait for it or choose another place"
        ) from None
    try:
        yield
    finally:
        lock.release()
        if (
            os.name == "nt" and not (staging / "journal.jsonl").exists()
        ):  # an open file could not be removed before
            shutil.rmtree(staging, ignore_errors=True)


def check_target(target: Path, *, force: bool) -> None:
    """Raise ExportError if `target` exists and may not be replaced, or cannot be a bundle's place."""
    if not target.name and not target.resolve().name:
        raise ExportError(f"{target} is the root of the file system; choose another place with -o")
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{target} is a file; choose another name with -o")
    if not force:
        raise ExportError(f"{target} exists; choose another name with -o or replace it with --force")
    if not (target / MANIFEST).is_file():
        raise ExportError(f"{target} is not a bundle, so --force does not replace it; remove it yourself")
    if target.resolve() == Path.cwd():
        raise ExportError(f"{target} is the working directory, which cannot be replaced; go elsewhere first")


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json for the bundle's files in `directory`, with their sizes and hashes."""
    present = [directory / name for name in FILES if (directory / name).is_file()]
    files = {path.name: FileInfo(path.stat().st_size, hash_file(path)) for path in present}
    return replace_manifest(directory, replace(manifest, files=files))


def replace_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Put `manifest` in the place of the one that `directory` has, at once."""
    temporary = directory / f"{MANIFEST}.partial"
    temporary.write_text(manifest.to_json(), "utf-8")
    temporary.replace(directory / MANIFEST)
    return manifest


def _take_place(bundle: Path, target: Path, old: Path, *, force: bool) -> None:
    """Give a complete bundle its name; one that has it lies at `old` for a moment."""
    for path in bundle.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    check_target(target, force=force)  # again: hours may have passed
    if target.exists():
        target.rename(old)
    try:
        bundle.rename(target)
    except BaseException:
        _put_back(old, target)
        raise


def _put_back(old: Path, target: Path) -> None:
    """Undo the first half of an exchange, or tidy up behind its second half."""
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
