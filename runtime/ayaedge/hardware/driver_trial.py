"""Vulkan's drivers are loaded in a child first: one that ends the process that lists its devices ends that one alone.

llama.cpp loads every driver as soon as anything is asked of it, for the processor too, so a broken one would end each
program. It can be told to leave Vulkan alone, before it is asked for the first time.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ayaedge import llama
from ayaedge.errors import AyaEdgeError
from ayaedge.hardware.devices import decoder_gpus
from ayaedge.hardware.drivers import driver_identity
from ayaedge.hardware.probes import Result, Verdicts, probe

logger = logging.getLogger(__name__)

SWITCH = "GGML_DISABLE_VULKAN"
"""llama.cpp's: if it stands in the environment, Vulkan's drivers are not loaded."""
_SECONDS = 300.0


def settle_drivers(directory: Path | None) -> str | None:
    """Why this process leaves Vulkan alone from now on; None if its drivers can be loaded, or there is no such build.

    To be called before llama.cpp is asked for anything. What a child finds is remembered in the cache's `directory`,
    for the drivers as they are.
    """
    if not llama.has_vulkan():
        return None
    verdicts, setting = Verdicts(directory), f"drivers {driver_identity()}"
    found = verdicts.recall(setting)
    if found is None:
        if SWITCH in os.environ:  # somebody else has decided
            return None
        found = _try()
        verdicts.remember(setting, found, value=found.value)
    fault = _fault(found)
    if fault and SWITCH not in os.environ:
        os.environ[SWITCH] = "1"
        logger.warning("Vulkan is left alone: %s", fault)
    return fault


def list_devices() -> int:
    """How many there are: what the child does."""
    return len(decoder_gpus())


def _try() -> Result:
    """An answer that was late, or a child that could not be started, will be so again."""
    try:
        found = probe(list_devices, seconds=_SECONDS)
    except AyaEdgeError as error:
        return Result({"refused": str(error)})
    late = found.death is not None and not found.lasts
    return Result({"refused": found.death}) if late else found


def _fault(found: Result) -> str | None:
    if found.death:
        return f"it ended the process that tried it ({found.death})"
    return str(found.value["refused"]) if isinstance(found.value, dict) and "refused" in found.value else None
