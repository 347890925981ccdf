"""ONNX Runtime, kept from speaking to its makers; the only place that imports it.

Its official builds send telemetry since 1.29, with an identifier that they write into the user's home. One variable
stops that, if it stands in the environment before the library is loaded: so it is set when this module is imported,
which `import ayaedge` does.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import cache
from importlib import import_module
from typing import Any

from ayaedge.errors import BackendError

logger = logging.getLogger(__name__)

_SWITCH = "ORT_DISABLE_TELEMETRY"

PLUGINS = {"webgpu": "onnxruntime_ep_webgpu", "openvino": "onnxruntime_ep_openvino"}
"""Modules of providers that come as packages of their own, next to the ordinary ONNX Runtime, by device."""

loaded_before: bool = "onnxruntime" in sys.modules and os.environ.get(_SWITCH) != "1"
"""Whether the program had loaded ONNX Runtime already, free to send telemetry."""
os.environ[_SWITCH] = "1"


@cache
def library() -> Any:
    """The module `onnxruntime`; it sends nothing, or the log says why that cannot be promised."""
    try:
        import onnxruntime
    except (ImportError, OSError) as error:  # not installed, or its libraries do not load
        needs = " (it needs Microsoft's Visual C++ runtime)" if os.name == "nt" else ""
        raise BackendError(
            f'ONNX Runtime cannot be loaded ({error}); install it{needs}: pip install "onnxruntime>=1.20"'
        ) from error

    onnxruntime.disable_telemetry_events()  # of what was loaded before: the events, not the identifier
    if loaded_before:
        logger.warning(
            "this program imported onnxruntime before ayaedge, and ONNX Runtime may already have sent telemetry: "
            "import ayaedge first, or set %s=1 in the environment",
            _SWITCH,
        )
    return onnxruntime


@cache
def plugin_devices() -> tuple[Any, ...]:
    """What the installed plug-in providers can drive, as OrtEpDevices; each plug-in is registered once for the process.

    One that is broken, or needs a newer ONNX Runtime, is logged and left out.
    """
    runtime, providers = library(), set[str]()
    for device, package in PLUGINS.items():
        try:
            plugin = import_module(package)
        except ImportError:
            continue
        try:
            runtime.register_execution_provider_library(f"ayaedge.{device}", plugin.get_library_path())
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has no class of its own for it
            logger.warning("%s is installed and cannot be used: %s", package, error)
            continue
        providers.update(plugin.get_ep_names())
    found = runtime.get_ep_devices() if providers else ()
    return tuple(device for device in found if device.ep_name in providers)


def add_plugin_device(settings: Any, device: Any, options: dict[str, str]) -> None:
    """Let a session run on one of `plugin_devices`, and on the processor where that lacks an operator."""
    settings.add_provider_for_devices([device], options)


def is_graphics(device: Any) -> bool:
    """Whether one of `plugin_devices` is a GPU, which an NPU and a processor are not."""
    return bool(device.device.type == library().OrtHardwareDeviceType.GPU)
