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
from typing import Any

from ayaedge.errors import BackendError

logger = logging.getLogger(__name__)

_SWITCH = "ORT_DISABLE_TELEMETRY"

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
