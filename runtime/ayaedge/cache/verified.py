"""Files whose content is known: SHA-256 of each, computed once for as long as the file stays as it is.

Everything that is kept is filed under what was found here, never under what a manifest claims: a damaged copy of a
bundle has the same manifest. Hashing a file of 5 GB takes seconds, so what was found is remembered with the file's
stamp, in the cache directory with this user's mark, and by this process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event

from ayaedge.bundle import Bundle, damaged, hash_stream, read_bundle
from ayaedge.cache.user_secret import is_marked, mark, user_secret
from ayaedge.errors import BundleError, list_faults
from ayaedge.files import matching, write_private
from ayaedge.untrusted.json_text import read_json
from ayaedge.untrusted.regular_file import Stamp, open_regular, stamp_of

logger = logging.getLogger(__name__)

HASHES = "hashes"
"""Name of the directory in which they are remembered."""
HASH_NAME = re.compile(r"[0-9a-f]{64}\.json")
_KIND = "hash of a file 1"
_RACY = 3_000_000_000
"""Nanoseconds for which a changed file is not trusted to show its next change: FAT counts seconds by twos."""
_LARGE = 64 << 20
"""Bytes from which hashing takes a time that is worth a line in the log."""
HASHING = __name__
"""The logger that says so."""
_MOST = 256
"""Files that are remembered."""
_MOST_BYTES = 1 << 12

_known: dict[Stamp, str] = {}
"""What this process has found."""


def open_verified(directory: str | Path, root: Path | None) -> Bundle:
    """Read and verify a bundle: see `ayaedge.bundle.read_bundle` and `verified`."""
    return verified(read_bundle(directory), root)


def verified(bundle: Bundle, root: Path | None) -> Bundle:
    """The same bundle, once every file is found to be what its manifest says; BundleError lists those that are not.

    `root` is the directory of the cache, if there is one. Without it the files are read once by each process.
    """
    if bundle.stamps is not None:
        return bundle
    hashes, ended = FileHashes(root), Event()
    paths = [bundle.directory / name for name in bundle.manifest.files]
    with ThreadPoolExecutor(max(1, len(paths))) as pool:
        try:
            found = list(pool.map(partial(_attempt, hashes, lambda: not ended.is_set()), paths))
        except BaseException:  # an interrupt, that should not wait for gigabytes
            ended.set()
            raise
    faults, stamps = [], {}
    for (name, info), result in zip(bundle.manifest.files.items(), found, strict=True):
        if isinstance(result, str):
            faults.append(f"{name} cannot be read: {result}")
        elif result[1] != info.sha256:
            faults.append(damaged(name))
        else:
            stamps[name] = result[0]
    if faults:
        raise BundleError(list_faults(f"the bundle {bundle.directory}", faults))
    return replace(bundle, stamps=stamps)


def _attempt(hashes: FileHashes, go_on: Callable[[], bool], path: Path) -> tuple[Stamp, str] | str:
    try:
        return hashes.find(path, go_on)
    except (OSError, ValueError) as error:
        return str(error)


class FileHashes:
    """SHA-256 of files, remembered below the directory of the cache, if there is one."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def find(self, path: Path, go_on: Callable[[], bool] = lambda: True) -> tuple[Stamp, str]:
        """A file's stamp, and its SHA-256 in hexadecimal; OSError as `open`, ValueError if it is no regular file.

        Reading ends early, with OSError, if `go_on` says no.
        """
        with open_regular(path) as stream:
            stamp, started = stamp_of(os.fstat(stream.fileno())), time.time_ns()
            known = _known.get(stamp) or self._recall(stamp)
            if known is not None:
                _known[stamp] = known
                return stamp, known
            if stamp.size >= _LARGE:
                logger.info("reading %s (%.1f GB) once, to see whether it is whole", path, stamp.size / 1e9)
            sha256 = hash_stream(stream, go_on)
            if not go_on() or stamp_of(os.fstat(stream.fileno())) != stamp:
                raise OSError("it was changed while it was read")
        if started - _last_change(stamp) > _RACY:
            _known[stamp] = sha256
            self._remember(stamp, sha256)
        return stamp, sha256

    @cached_property
    def _secret(self) -> bytes | None:
        return user_secret(self._root) if self._root else None

    def _path(self, stamp: Stamp) -> Path | None:
        name = f"{hashlib.sha256(repr(tuple(stamp)).encode()).hexdigest()}.json"
        return self._root / HASHES / name if self._root else None

    def _recall(self, stamp: Stamp) -> str | None:
        """What an earlier process has found; None if there is nothing, or nothing that this user has written."""
        path = self._path(stamp)
        if path is None or self._secret is None:
            return None
        try:
            entry = read_json(path, most_bytes=_MOST_BYTES, links=False)
            sha256 = entry["sha256"]
            if not is_marked(self._secret, entry["mark"], _KIND, tuple(stamp), sha256):
                raise ValueError("it was not written by this user")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("what %s says of a file is not used: %s", path, error)
            return None
        return str(sha256)

    def _remember(self, stamp: Stamp, sha256: str) -> None:
        path = self._path(stamp)
        if path is None or self._secret is None:
            return
        entry = {"sha256": sha256, "mark": mark(self._secret, _KIND, tuple(stamp), sha256)}
        try:
            write_private(path, json.dumps(entry) + "\n")
            kept = [one for one in matching(path.parent, "*.json") if HASH_NAME.fullmatch(one.name)]
            for old in sorted(kept, key=_written)[:-_MOST]:
                old.unlink()
        except OSError as error:
            logger.info("the SHA-256 of a file could not be remembered in %s: %s", path.parent, error)


def _written(path: Path) -> float:
    with suppress(OSError):  # another process may have removed it
        return path.stat().st_mtime
    return 0.0


def _last_change(stamp: Stamp) -> int:
    return stamp.modified if os.name == "nt" else stamp.changed
