"""Directories that nobody else has prepared or can change, although others may write where they lie, as in /tmp."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ayaedge.errors import ExportError
from ayaedge.files import unfinished

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_JUNCTION = 0xA0000003
"""Windows' tag of a directory that stands for another one."""


def make_own(directory: Path, *, but: str) -> None:
    """Make a directory that only its owner may look into, or take up the one that an earlier run has left.

    Links, pipes and files with a second name are removed from below it, but from the directory `but`; a link itself
    goes, never what it points to. What is left can be read, cut off and removed by its name.
    ExportError if what stands there is a link, a file, another user's or one that others can write, or if any user may
    exchange what lies next to it. OSError if it cannot be made.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        _check_ours(directory)
        with suppress(OSError):  # a file system without modes
            directory.chmod(0o700)
        _remove_links(directory, but)
    _check_parent(directory)


def follows_a_strangers_link(path: Path) -> bool:
    """Whether `path` is another user's link where everybody may put some: the rule of Linux's `protected_symlinks`."""
    try:
        found, parent = path.lstat(), path.parent.stat()
    except OSError:
        return False
    shared = parent.st_mode & stat.S_ISVTX and parent.st_mode & stat.S_IWOTH
    return bool(
        hasattr(os, "geteuid")
        and stat.S_ISLNK(found.st_mode)
        and shared
        and found.st_uid not in (os.geteuid(), parent.st_uid)
    )


def _check_ours(directory: Path) -> None:
    """Raise ExportError unless what stands at `directory` is as if it was made now, by us."""
    found = directory.lstat()
    with _new_directory(directory.parent) as fresh:
        if not (stat.S_ISDIR(found.st_mode) and _is_plain(found)):
            fault = "is not a directory"
        elif found.st_uid != fresh.st_uid:
            fault = "belongs to another user"
        elif found.st_mode & _OTHERS_WRITE & ~fresh.st_mode:
            fault = "may be written by other users"
        else:
            return
    raise ExportError(
        f"{directory}, the place of unfinished files, {fault}: remove it or choose another target; nothing was left "
        "behind by this export"
    )


def _remove_links(directory: Path, but: str) -> None:
    for place, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(place, name)
            with suppress(FileNotFoundError):  # another export works here; it will have the lock
                if not _is_plain(path.lstat()):
                    path.unlink()
        held = {but} if Path(place) == directory else set()
        directories[:] = [name for name in directories if name not in held and Path(place, name).exists()]


def _check_parent(directory: Path) -> None:
    """Raise ExportError, and remove `directory`, where any user could put something else in its place."""
    mode = directory.parent.stat().st_mode
    has_modes = not directory.stat().st_mode & _OTHERS_WRITE  # else what it says of the parent means nothing
    if has_modes and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        with suppress(OSError):  # it holds something
            directory.rmdir()
        raise ExportError(
            f"any user may exchange what lies in {directory.parent} (mode {mode & 0o7777:o}): choose a target in a "
            f"directory of your own, or take that right away: chmod o-w, or +t"
        )


@contextmanager
def _new_directory(parent: Path) -> Iterator[os.stat_result]:
    """How the file system shows a directory that we have just made for us alone; some know neither owners nor modes."""
    directory = unfinished(parent / "x")
    directory.mkdir(mode=0o700)
    try:
        yield directory.lstat()
    finally:
        directory.rmdir()


def _is_plain(found: os.stat_result) -> bool:
    """Whether a name stands for a directory or a file, and is its only name."""
    if getattr(found, "st_reparse_tag", 0) == _JUNCTION:
        return False
    return stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
