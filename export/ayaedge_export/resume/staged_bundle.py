"""Writing a bundle so that none ever stands half-finished under its final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from ayaedge.bundle import FILES, MANIFEST, hash_file, read_bundle
from ayaedge.errors import CheckpointError, ExportError, InvalidOptionError
from ayaedge.files import forget_abandoned, replacing, resolved
from ayaedge.manifest import FileInfo, Manifest
from ayaedge_export.resume.journal import Journal, has_pieces
from ayaedge_export.resume.own_directory import follows_a_strangers_link, make_own

_JOURNAL, _LOCK, _OLD, _DISCARDED = "journal.jsonl", "lock", "old", "discarded"
_LOCK_TRIES = 10


@contextmanager
def staged_bundle(
    target: Path, fingerprint: str, *, force: bool = False, resume: bool = True
) -> Iterator[Journal]:
    """A directory next to `target` whose bundle takes that name when the block ends well.

    Yields the journal, whose `directory` is the bundle's once the block has called its `begin`; with `resume` it
    holds what an interrupted export of the same fingerprint has finished. An existing target is an error unless
    `force`; then it is replaced only after the new one is complete and has been read. When the block fails the target
    is as it was, and finished pieces stay for the next try, unless the checkpoint or an option is at fault.
    Until then everything lies in a directory that only this user can look into or change (`own_directory`).
    ExportError if another export has the same target, or others could change what is unfinished.
    """
    check_target(target, force=force)
    staging = staging_place(target)
    target = target.resolve()  # what a link points to is replaced, not the link
    with _alone(staging, target):
        journal = None
        try:
            forget_abandoned(staging, 0.0)
            _put_back(staging / _OLD, target)  # a run was killed while it exchanged the bundles
            shutil.rmtree(staging / _DISCARDED, ignore_errors=True)
            check_target(target, force=force)
            journal = Journal(staging / _JOURNAL, staging / "bundle", fingerprint, resume=resume)
            yield journal
            read_bundle(journal.directory)
            _take_place(journal.directory, target, staging, force=force)
        except BaseException as error:
            useless = isinstance(error, (CheckpointError, InvalidOptionError)) or (
                journal is not None and not journal.pieces
            )
            if useless if journal and journal.begun else not (staging / _JOURNAL).exists():
                _clear(staging)
            raise
        _clear(staging)


def staging_place(target: Path) -> Path:
    """Where an unfinished bundle lies that shall become `target`; ExportError if `target` leads nowhere."""
    try:
        target = resolved(target)
    except OSError as error:  # links in a circle
        raise ExportError(f"{target} cannot be followed: {error}") from None
    return target.with_name(f".{target.name}.partial")


def what_is_left(target: Path, *, resume: bool = True) -> str:
    """A sentence on what an export to `target` that has stopped leaves, and what to do with it."""
    staging = staging_place(target)
    if not has_pieces(staging / _JOURNAL):
        return "nothing was left behind"
    again = "the same export" if resume else "the same export with resume=True"
    return f"what is finished lies in {staging}, and {again} goes on from there"


@contextmanager
def _alone(staging: Path, target: Path) -> Iterator[None]:
    """Hold the lock of this target, which the system releases when the process ends in any way."""
    lock = _locked(staging, target)
    try:
        yield
    finally:
        if os.name == "nt":  # there an open file cannot be removed
            lock.release()
        with suppress(OSError):
            (staging / _LOCK).unlink()
            staging.rmdir()  # unless something is kept for the next try
        lock.release()


def _clear(staging: Path) -> None:
    """Remove everything but the lock, which goes last."""
    for path in staging.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _LOCK:
            with suppress(OSError):
                path.unlink()


def _locked(staging: Path, target: Path) -> FileLock:
    """The lock, which lies in `staging`, where nobody else can put one."""
    for _ in range(_LOCK_TRIES):
        make_own(staging, but=_OLD)
        lock = FileLock(staging / _LOCK, blocking=False)
        try:
            lock.acquire()
        except FileNotFoundError:  # an export that ended now has removed the directory
            continue
        except Timeout:
            break
        if (staging / _LOCK).exists():
            return lock
        lock.release()
    raise ExportError(f"another export to {target} is at work; wait for it or choose another place")


def check_target(target: Path, *, force: bool) -> None:
    """Raise ExportError if `target` exists and may not be replaced, or cannot be a bundle's place."""
    if not target.name and not target.resolve().name:
        raise ExportError(f"{target} is the root of the file system; choose another target")
    if follows_a_strangers_link(target):
        raise ExportError(f"{target} is a link that another user has made; choose another target")
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{target} is a file; choose another target")
    if not force:
        raise ExportError(f"{target} exists; choose another target or replace it with force=True")
    if not (target / MANIFEST).is_file():
        raise ExportError(f"{target} is not a bundle, so force=True does not replace it; remove it yourself")
    if target.resolve() == Path.cwd():
        raise ExportError(f"{target} is the working directory, which cannot be replaced; go elsewhere first")


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json for the bundle's files in `directory`, with their sizes and hashes."""
    present = [directory / name for name in FILES if (directory / name).is_file()]
    files = {path.name: FileInfo(path.stat().st_size, hash_file(path)) for path in present}
    return replace_manifest(directory, replace(manifest, files=files))


def replace_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Put `manifest` in the place of the one that `directory` has, at once."""
    with replacing(directory / MANIFEST, private=False) as stream:
        stream.write(manifest.to_json().encode())
    return manifest


def _take_place(bundle: Path, target: Path, staging: Path, *, force: bool) -> None:
    """Give a complete bundle its name; one that has it lies in `staging` for a moment."""
    for path in bundle.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    check_target(target, force=force)  # again: hours may have passed
    old = staging / _OLD
    try:
        if target.exists():
            target.rename(old)
        bundle.rename(target)
    except BaseException:
        _put_back(old, target)
        raise
    if old.exists():
        old.rename(staging / _DISCARDED)  # a half-removed one must never be put back


def _put_back(old: Path, target: Path) -> None:
    if old.exists() and not target.exists():
        old.rename(target)
