"""A secret of this user: what carries its mark was written by his own installation."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path

from ayaedge.files import SECRET, make_private, replacing
from ayaedge.untrusted.regular_file import open_regular

logger = logging.getLogger(__name__)

_SECRET_BYTES = 32


def user_secret(directory: Path) -> bytes | None:
    """The 32 random bytes by which this user's own states are known: made at the first call, then always the same.

    They lie in `directory`, where only this user may read them; processes that ask for the first time at once get the
    same. None, with a message logged, if they cannot be kept there: nothing that was computed is kept or used then.
    """
    path = directory / SECRET
    try:
        make_private(directory)
        secret = _read_secret(path)
        if secret is None:
            _make_secret(path)
            secret = _read_secret(path)
    except OSError as error:
        logger.warning(
            "nothing is kept or used of what was computed, and conversations are saved without what was computed: "
            "no secret in %s: %s",
            path, error,
        )  # fmt: skip
        return None
    return secret


def mark(secret: bytes, kind: str, *facts: object) -> str:
    """HMAC-SHA256, hexadecimal, of facts of a kind, which are made of numbers, strings and tuples."""
    return hmac.new(secret, repr((kind, facts)).encode(), hashlib.sha256).hexdigest()


def is_marked(secret: bytes, found: object, kind: str, *facts: object) -> bool:
    """Whether these facts carry the mark of this secret, whatever was found in its place."""
    expected = mark(secret, kind, *facts)
    return isinstance(found, str) and hmac.compare_digest(found.encode(errors="replace"), expected.encode())


def _read_secret(path: Path) -> bytes | None:
    """None if there is none, or not a whole one; OSError if it is somebody else's."""
    try:
        with open_regular(path, links=False) as stream:
            status, content = os.fstat(stream.fileno()), stream.read(_SECRET_BYTES + 1)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise OSError(str(error)) from None
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
