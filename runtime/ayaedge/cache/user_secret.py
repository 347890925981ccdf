"""A secret of this user: what carries its mark was written by his own installation."""

from __future__ import annotations

import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from ayaedge.files import make_private, replacing

logger = logging.getLogger(__name__)

_SECRET, _SECRET_BYTES = "secret", 32


def user_secret(directory: Path) -> bytes | None:
    """The 32 random bytes by which this user's own states are known: made at the first call, then always the same.

    They lie in `directory`, where only this user may read them; processes that ask for the first time at once get the
    same. None, with a message logged, if they cannot be kept there: states are neither saved nor used then.
    """
    path = directory / _SECRET
    try:
        make_private(directory)
        secret = _read_secret(path)
        if secret is None:
            _make_secret(path)
            secret = _read_secret(path)
    except OSError as error:
        logger.warning("conversations are saved without what was computed: no secret in %s: %s", path, error)
        return None
    return secret


def _read_secret(path: Path) -> bytes | None:
    """None if there is none, or not a whole one; OSError if it is somebody else's."""

    def not_through_a_link(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0))

    try:
        with open(path, "rb", opener=not_through_a_link) as stream:
            status, content = os.fstat(stream.fileno()), stream.read(_SECRET_BYTES + 1)
    except FileNotFoundError:
        return None
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise OSError("it belongs to another user")
    if status.st_mode & 0o077:
        with suppress(OSError):
            path.chmod(0o600)
    return content if len(content) == _SECRET_BYTES else None


def _make_secret(path: Path) -> None:
    """Write a secret, unless another process was faster."""
    with replacing(path, private=True, sync=True, put=_put_first) as stream:
        stream.write(secrets.token_bytes(_SECRET_BYTES))


def _put_first(temporary: Path, path: Path) -> None:
    """Give a file its name, if there is no whole secret of that name."""
    try:
        os.link(temporary, path)  # unlike a rename it replaces nothing
    except OSError:  # there is one already, or no links in this file system
        if _read_secret(path) is None:
            temporary.replace(path)
