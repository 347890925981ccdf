"""Writing a bundle so that none ever stands half-finished under its final name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ayaedge.bundle import MANIFEST, FileInfo, Manifest, hash_file
from ayaedge.errors import ExportError


@contextmanager
def staged_directory(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A temporary directory beside `target` that takes its name when the block ends well.

    An existing target is an error unless `force`; then it is replaced only after the new one is complete.
    When the block fails the temporary directory is removed and the target is as it was.
    """
    check_target(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield staging
        _take_place(staging, target, force=force)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_target(target: Path, *, force: bool) -> None:
    """Raise ExportError if `target` exists and may not be replaced."""
    if not target.exists():
        return
    if not force:
        raise ExportError(f"{target} exists; choose another name with -o or replace it with --force")
    if not (target / MANIFEST).is_file():
        raise ExportError(f"{target} is not a bundle, so --force does not replace it; remove it yourself")


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Write manifest.json for the files that `directory` holds, with their sizes and hashes."""
    files = {
        path.name: FileInfo(path.stat().st_size, hash_file(path))
        for path in sorted(directory.iterdir())
        if path.name != MANIFEST
    }
    complete = replace(manifest, files=files)
    temporary = directory / f"{MANIFEST}.partial"
    temporary.write_text(complete.to_json(), "utf-8")
    temporary.replace(directory / MANIFEST)
    return complete


def _take_place(staging: Path, target: Path, *, force: bool) -> None:
    for path in staging.iterdir():
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
    staging.chmod(0o755)  # mkdtemp makes private directories
    if not target.exists():
        staging.rename(target)
        return
    check_target(target, force=force)
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(old / target.name)
    staging.rename(target)
    shutil.rmtree(old, ignore_errors=True)
