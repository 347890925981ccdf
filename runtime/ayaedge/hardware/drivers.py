"""What decides whether a graphics driver works today as it did when it was tried: versions, files, environment."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path

_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES", "GGML_VK_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""Which drivers and devices a process sees."""
_VULKAN = ("/usr/share/vulkan/icd.d", "/etc/vulkan/icd.d", "/usr/local/share/vulkan/icd.d")
"""Where Linux's drivers of Vulkan are listed; installing another version writes these files anew."""
_NVIDIA = Path("/sys/module/nvidia/version")


def driver_identity() -> str:
    """Text that changes with the system, its graphics drivers, and what the environment hides of them."""
    facts: list[object] = [platform.system(), platform.release(), platform.version()]
    facts += [os.environ.get(name) for name in _VARIABLES]
    named = [Path(path) for path in (os.environ.get(_VARIABLES[0]) or "").split(os.pathsep) if path]
    for path in (*named, *(file for folder in _VULKAN for file in sorted(Path(folder).glob("*.json")))):
        with suppress(OSError):
            facts.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
    with suppress(OSError):
        facts.append(_NVIDIA.read_text("utf-8").strip())
    return repr(facts)
