"""What was measured of a bundle on this machine, and where that is remembered."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayaedge.bundle import Bundle
from ayaedge.cache.verified import verified
from ayaedge.checks import check_options, instance, real_number, whole_number
from ayaedge.decoder.kernel_trial import asked_acceleration
from ayaedge.decoder.options import DecoderOptions
from ayaedge.files import write_private
from ayaedge.hardware.machine import processor
from ayaedge.hardware.speeds import Speeds
from ayaedge.untrusted.json_text import read_json

logger = logging.getLogger(__name__)

MACHINE = "machine"
"""Name of the directory of profiles in that of the cache."""
_MOST_BYTES = 1 << 14
_MOST_SECONDS = 1e6
"""That a tile or a token takes, on the slowest machine: days."""


_FOR_ANY_DEVICE = ("repack", "threads", "threads_batch", "ubatch_size")


@dataclass(frozen=True)
class Settings:
    """What is tuned; the names are those of `DecoderOptions`."""

    repack: bool
    threads: int
    threads_batch: int
    ubatch_size: int
    device: str | None = None
    """`cpu`, or what holds the layers or computes prompts; None if devices were not compared."""
    gpu_layers: int | None = None
    offload_prompts: bool | None = None

    def places(self, options: DecoderOptions) -> DecoderOptions:
        """`options` with device, layers and prompts as these are."""
        if self.device is None:
            return options
        device, layers, prompts = self.device, self.gpu_layers, self.offload_prompts
        return dataclasses.replace(options, device=device, gpu_layers=layers, offload_prompts=prompts)  # type: ignore[arg-type]

    def apply(self, options: DecoderOptions) -> DecoderOptions:
        """`options` with all of it; devices as they were if these were not compared."""
        tuned = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(options, **tuned)


@dataclass(frozen=True)
class Profile:
    """What is known of a bundle on this machine."""

    speeds: Speeds
    settings: Settings | None = None
    """None after a quick measurement, which tries no others than the defaults."""
    acceleration: str = "off"
    """The kernel that the speeds were measured with; with another they say nothing."""

    def apply(self, options: DecoderOptions) -> DecoderOptions:
        """`options` with the tuned value wherever they leave one open; no repacked weights for a kernel by name.

        Devices are for `placement` to choose.
        """
        if self.settings is None:
            return options
        tuned = {name: getattr(self.settings, name) for name in _FOR_ANY_DEVICE}
        if options.threads is not None:  # given for both kinds of work
            tuned["threads_batch"] = options.threads
        if asked_acceleration(options) not in ("auto", "off"):
            del tuned["repack"]
        left = {name: value for name, value in tuned.items() if getattr(options, name) is None}
        return dataclasses.replace(options, **left)


def profile_path(cache: Path, bundle: Bundle) -> Path:
    """Where the profile of a bundle on this machine lies; BundleError for a damaged bundle, which has none."""
    from ayaedge import llama, ort

    hashes = list(verified(bundle, cache).hashes.items())
    versions = (llama.library().__version__, ort.library().__version__)
    facts = (hashes, processor().name, processor().threads, platform.machine(), versions)
    return cache / MACHINE / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.json"


def load_profile(path: Path) -> Profile | None:
    """A profile that was saved; None if there is none, or, with a message logged, not a whole one."""
    try:
        return _profile(read_json(path, most_bytes=_MOST_BYTES, links=False))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("what was measured in %s cannot be read and is not used: %s", path, error)
        return None


def _profile(values: Any) -> Profile:
    """A profile from parsed JSON; ValueError, TypeError or KeyError for what is none."""
    settings = values["settings"]
    profile = Profile(
        Speeds(**values["speeds"]),
        None if settings is None else Settings(**settings),
        values.get("acceleration", "off"),  # as it was before there were kernels
    )
    check_options(
        instance("acceleration", profile.acceleration, str),
        *(
            real_number(
                name,
                value,
                least=0,
                above=-1 if name.endswith("growth") else 0,
                most=_MOST_SECONDS,
                limits="seconds",
            )
            for name, value in dataclasses.asdict(profile.speeds).items()
        ),
    )
    if profile.settings is not None:
        check_options(
            instance("repack", profile.settings.repack, bool),
            whole_number("threads", profile.settings.threads, least=1),
            whole_number("threads_batch", profile.settings.threads_batch, least=1),
            whole_number("ubatch_size", profile.settings.ubatch_size, least=1),
        )
        profile.settings.apply(DecoderOptions())
    profile.apply(DecoderOptions())  # which knows how many there may be
    return profile


def save_profile(path: Path, profile: Profile) -> None:
    """Write it; what goes wrong is logged and nothing else happens."""
    try:
        write_private(path, json.dumps(dataclasses.asdict(profile)) + "\n")
    except OSError as error:
        logger.warning("what was measured could not be kept in %s: %s", path.parent, error)
