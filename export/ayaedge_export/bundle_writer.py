"""Writing a bundle so that none ever stands half-finished under its final name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ayaedge.bundle import FILES, MANIFEST, FileInfo, Manifest, hash_file, read_bundle
from ayaedge.errors import ExportError


@contextmanager
def staged_directory(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its name when the block ends well.

    An existing target is an error unless `force`; then it is replaced only after the new one is complete and has
    been read. When the block fails the temporary directory is removed and the target is as it was.
    """
    check_target(target, force=force)
    target = target.resolve()  # what a link points to is replaced, not the link
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield staging
        read_bundle(staging)
        _take_place(staging, target, force=force)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


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


def _take_place(staging: Path, target: Path, *, force: bool) -> None:
    for path in staging.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    staging.chmod(0o777 & ~_umask())  # mkdtemp makes private directories
    check_target(target, force=force)  # again: hours may have passed
    if not target.exists():
        staging.rename(target)
        return
    old = target.with_name(f"{staging.name}.old")
    target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    """The process's mask for new files, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
