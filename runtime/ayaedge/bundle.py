"""A bundle: the directory that the exporter writes and the runtime reads, and nothing else between them.

    aya-vision-8b-q4_k_m-int8/
      manifest.json      what the runtime needs to know, and every file with its size and SHA-256
      vision.onnx        tiles (n, 3, S, S) -> image embeddings (n, T, hidden); beside it vision.onnx.data if large
      vision.fp16.onnx   the same for GPUs, if the bundle was made for both; and its .data
      decoder.gguf       the decoder, its tokenizer and its chat template

Reading one reports all faults at once. Whether the two halves fit together is checked where they are loaded
(`ayaedge.vision.encoder`, `ayaedge.decoder.decoder`), against the figures of the manifest.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import BinaryIO

import platformdirs

from ayaedge.checks import build
from ayaedge.errors import BundleError, list_faults
from ayaedge.manifest import (
    DECODER,
    FORMAT_VERSION,
    LONGEST_NAME,
    VISION,
    VISION_FORMATS,
    Manifest,
    check_values,
    vision_file,
)
from ayaedge.untrusted.json_text import read_json
from ayaedge.untrusted.regular_file import open_regular, stamp_of

MANIFEST = "manifest.json"
GRAPHS = (VISION, *map(vision_file, VISION_FORMATS))
FILES = (*GRAPHS, *(f"{graph}.data" for graph in GRAPHS), DECODER)
"""Everything that a bundle may hold beside its manifest."""
BUNDLES = "bundles"
"""The folder of bundles that are known by their names, in a program's folder and in the directories for data."""
_CHUNK = 1 << 20
_MOST_MANIFEST = 1 << 24
"""Bytes of manifest.json; those of the released checkpoints have a few hundred thousand."""


@dataclass(frozen=True)
class Bundle:
    """A bundle directory whose manifest has been read and whose files are there with the right sizes."""

    directory: Path
    manifest: Manifest
    stamps: Mapping[str, object] | None = field(default=None, repr=False, compare=False)
    """Of the files as they were when each was found to have the manifest's SHA-256 (`cache.verified`); None before."""

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file by its name: what was found, not what a manifest claims."""
        assert self.stamps is not None, "the files of this bundle were not verified"
        return {name: info.sha256 for name, info in sorted(self.manifest.files.items())}

    @property
    def identity(self) -> bytes:
        """SHA-256 of everything that decides about answers: the files, and what the manifest says of using them."""
        assert self.hashes
        manifest = replace(self.manifest, parity={})  # figures, which `verify` may add later
        return hashlib.sha256(manifest.to_json().encode()).digest()

    def check_unchanged(self) -> None:
        """Raise BundleError if a file is not the one that was verified any more."""
        for name, stamp in (self.stamps or {}).items():
            try:
                with open_regular(self.directory / name) as stream:
                    found = stamp_of(os.fstat(stream.fileno()))
            except (OSError, ValueError):
                found = None
            if found != stamp:
                raise BundleError(
                    f"{self.directory / name} was changed while it was being loaded: load it again"
                )

    @property
    def vision_path(self) -> Path:
        return self.directory / VISION

    @property
    def decoder_path(self) -> Path:
        return self.directory / DECODER

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.directory.resolve().name

    @property
    def size(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(info.size for info in self.manifest.files.values())


def read_bundle(directory: str | Path) -> Bundle:
    """Read and check a bundle; BundleError lists every fault (version, manifest, missing files, sizes).

    A mere name, `aya-vision-8b`, that is no directory here is looked for in `bundle_directories`.
    """
    directory = find_bundle(Path(directory))
    manifest = read_manifest(directory)
    needed = (VISION, *manifest.gpu_graphs.values(), DECODER)
    faults = [
        f"{name} is not listed in {MANIFEST}" for name in dict.fromkeys(needed) if name not in manifest.files
    ]
    for name, info in manifest.files.items():
        path = directory / name
        if Path(name).name != name or len(name) > LONGEST_NAME:
            faults.append(f"{MANIFEST} names {name!r}, which is not a file of the bundle")
        elif not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != info.size:
            faults.append(f"{name} has {path.stat().st_size} bytes instead of {info.size}: copy it again")
    if faults:
        raise BundleError(list_faults(f"the bundle {directory}", faults))
    return Bundle(directory, manifest)


def bundle_directories() -> list[Path]:
    """Where bundles are found by their names: next to a frozen program, the user's data, the computer's data.

    On Linux `~/.local/share/ayaedge/bundles`, on macOS `~/Library/Application Support/ayaedge/bundles`, on Windows
    `%LOCALAPPDATA%\\ayaedge\\bundles`; without a home directory that one is left out.
    """
    found = [Path(sys.executable).parent / BUNDLES] if getattr(sys, "frozen", False) else []
    for place in platformdirs.user_data_dir, platformdirs.site_data_dir:
        try:
            directory = place("ayaedge", appauthor=False)
        except (RuntimeError, ValueError, KeyError):  # as pathlib, Windows' variables and `pwd` say it
            continue
        if not directory.startswith("~"):  # which nobody could replace
            found.append(Path(directory) / BUNDLES)
    return found


def known_bundles() -> dict[str, Path]:
    """Names that `AyaVision.load` finds, and the directories of those bundles, which are not checked here."""
    found: dict[str, Path] = {}
    for place in bundle_directories():
        with suppress(OSError):  # there is none, or it is somebody else's
            for directory in sorted(place.iterdir()):
                if (directory / MANIFEST).is_file():
                    found.setdefault(directory.name, directory)
    return found


def find_bundle(directory: Path) -> Path:
    """The directory of a bundle that was named by its path, or by its name alone; BundleError if there is none."""
    is_name = directory.name == str(directory) and directory.name not in ("", "..")
    if not is_name or os.path.lexists(
        directory
    ):  # which never raises, as a name may be too long for the system
        return directory
    places = bundle_directories()
    for place in places:
        if os.path.lexists(place / directory):
            return place / directory
    known = " and ".join(map(str, places))
    raise BundleError(f"there is no bundle at {directory}, nor one of that name in {known}")


def read_manifest(directory: Path) -> Manifest:
    """Read manifest.json alone; BundleError if it is missing, of another version or incomplete."""
    path = directory / MANIFEST
    if not os.path.lexists(directory):  # never raises, as a name may be too long for the system
        raise BundleError(f"there is no bundle at {directory}")
    if directory.is_file():
        raise BundleError(f"{directory} is a file; give the directory that holds it: {directory.parent}")
    if not path.is_file():
        hint = ""
        if (directory / "config.json").is_file():
            hint = f"; it looks like a checkpoint: ayaedge export {directory}"
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}{hint}")
    try:
        data = read_json(path, most_bytes=_MOST_MANIFEST)
    except ValueError as error:
        raise BundleError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from None
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        advice = "update ayaedge" if isinstance(version, int) and version > FORMAT_VERSION else "export again"
        raise BundleError(
            f"{path} has format version {version!r}, this ayaedge reads {FORMAT_VERSION}: {advice}"
        )
    faults: list[str] = []
    manifest = build(Manifest, data, "", faults)
    faults = faults or check_values(manifest)
    if faults:
        raise BundleError(list_faults(str(path), faults))
    return manifest


def check_hashes(bundle: Bundle) -> list[str]:
    """The files whose content is not what was written, as one sentence each; empty if all are intact."""
    faults = []
    for name, info in bundle.manifest.files.items():
        try:
            if hash_file(bundle.directory / name) != info.sha256:
                faults.append(damaged(name))
        except (OSError, ValueError) as error:
            faults.append(f"{name} cannot be read: {error}")
    return faults


def damaged(name: str) -> str:
    """A file whose content is not what was written, for a list of faults."""
    return f"{name} is damaged: its SHA-256 differs from the manifest's; copy or download it again"


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; ValueError if it is no regular file."""
    with open_regular(path) as stream:
        return hash_stream(stream)


def hash_stream(stream: BinaryIO, go_on: Callable[[], bool] = lambda: True) -> str:
    """SHA-256 of what is left of an unbuffered stream, in hexadecimal; of a part if `go_on` says no in between."""
    digest, chunk = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    while go_on() and (count := stream.readinto(chunk)):  # type: ignore[attr-defined]
        digest.update(chunk[:count])
    return digest.hexdigest()


def demo_bundle() -> Path:
    """Where the small demonstration model lies that ships with the package."""
    directory = Path(str(files("ayaedge") / "demo"))
    if not directory.is_dir():
        raise BundleError(
            f"the demonstration model is not at {directory}: this copy of ayaedge is packed, or was packed without it; "
            "name the directory of a bundle"
        )
    return directory
