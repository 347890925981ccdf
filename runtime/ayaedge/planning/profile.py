"""What was measured of a bundle on this machine, and where that is remembered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
from dataclasses import dataclass
from pathlib import Path

from ayaedge.bundle import Bundle
from ayaedge.decoder.options import DecoderOptions
from ayaedge.files import write_private
from ayaedge.hardware.machine import processor
from ayaedge.hardware.speeds import Speeds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What is tuned; the names are those of `DecoderOptions`."""

    repack: bool
    threads: int
    threads_batch: int
    ubatch_size: int


@dataclass(frozen=True)
class Profile:
    """What is known of a bundle on this machine."""

    speeds: Speeds
    settings: Settings | None = None
    """None after a quick measurement, which tries no others than the defaults."""

    def apply(self, options: DecoderOptions) -> DecoderOptions:
        """`options` with the tuned value wherever they leave one open."""
        if self.settings is None:
            return options
        tuned = dataclasses.asdict(self.settings)
        if options.threads is not None:  # given for both kinds of work
            tuned["threads_batch"] = options.threads
        left = {name: value for name, value in tuned.items() if getattr(options, name) is None}
        return dataclasses.replace(options, **left)


def profile_path(cache: Path, bundle: Bundle) -> Path:
    """Where the profile of a bundle on this machine lies."""
    from ayaedge import llama, ort

    hashes = sorted((name, info.sha256) for name, info in bundle.manifest.files.items())
    versions = (llama.library().__version__, ort.library().__version__)
    facts = (hashes, processor().name, processor().threads, platform.machine(), versions)
    return cache / "machine" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.json"


def load_profile(path: Path) -> Profile | None:
    """A profile that was saved; None if there is none, or not a whole one."""
    try:
        values = json.loads(path.read_text("utf-8"))
        settings = values["settings"]
        profile = Profile(Speeds(**values["speeds"]), Settings(**settings) if settings else None)
        profile.apply(DecoderOptions())
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return profile


def save_profile(path: Path, profile: Profile) -> None:
    """Write it; what goes wrong is logged and nothing else happens."""
    try:
        write_private(path, json.dumps(dataclasses.asdict(profile)) + "\n")
    except OSError as error:
        logger.warning("what was measured could not be kept in %s: %s", path.parent, error)
