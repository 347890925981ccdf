"""llama.cpp, loaded once and made quiet; the only place that imports it.

Two settings must stand in the environment before the library is loaded, and its messages go to `logging` (logger
`ayaedge.llama`) instead of the terminal. The last error lines are kept, because its functions report failure
without a reason.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import threading
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

from ayaedge.errors import BackendError

REQUIREMENT = "llama-cpp-python~=0.3.36"
_WHEELS = "https://abetlen.github.io/llama-cpp-python/whl"
"""Its author's index of prebuilt wheels, named here for people: nothing in this package opens it."""

logger = logging.getLogger("ayaedge.llama")

_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.INFO}
"""ggml's levels (1 debug, 2 info, 3 warning, 4 error) lower: what matters to a user we raise ourselves."""
_ERROR = 4
_CONTINUES = 5
_said = threading.local()
"""Per thread, which is per model: `errors`, the last lines that llama.cpp called errors."""
_callbacks: list[Any] = []
"""Keeps the ctypes callback alive as long as the library may call it."""


@cache
def library() -> Any:
    """The module `llama_cpp`, initialised, which loads drivers of GPUs; its functions mirror llama.h."""
    llama_cpp = imported()
    callback = llama_cpp.llama_log_callback(_forward)
    _callbacks.append(callback)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


def imported() -> Any:
    """The module `llama_cpp` before it loads any driver: for its version, and for what it was built with."""
    # Idle OpenMP threads otherwise spin and stall decoding by up to 60 times beside any other busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger first
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # not installed, or its libraries do not load
        raise BackendError(
            f"llama-cpp-python cannot be loaded ({error}); install it, without a compiler: {wheel_command()}"
        ) from error
    return llama_cpp


def wheel_command(kind: str | None = None) -> str:
    """The command that installs llama-cpp-python as its author has built it: `cpu`, `metal`, `vulkan`, `cu124`.

    None is for this system, with what it depends on. Such wheels are built for common processors: with AVX2, without
    AVX-512 and VNNI.
    """
    alone = " --no-deps" if kind else ""
    if kind is None:
        kind = "metal" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "cpu"
    return (
        f"pip install --force-reinstall{alone} --no-cache-dir --only-binary llama-cpp-python "
        f'--extra-index-url {_WHEELS}/{kind} "{REQUIREMENT}"'
    )


def native_library(name: str, **signatures: tuple[Any, list[Any]]) -> Any:
    """A library that llama.cpp itself uses, such as ggml-base, with the very functions that llama.cpp calls.

    Each caller gets an object of its own, on which the result and argument types of its functions are declared.
    """
    library()
    native = _loaded(name)
    for function, (result, arguments) in signatures.items():
        getattr(native, function).restype = result
        getattr(native, function).argtypes = arguments
    return native


def has_vulkan() -> bool:
    """Whether this build can use Vulkan; no driver is loaded to find that out."""
    module = imported().llama_cpp
    files = Path(module.__file__).parent.glob("lib/*ggml-vulkan.*")
    return any(files) or hasattr(module._lib, "ggml_backend_vk_reg")


def _loaded(name: str) -> Any:
    """A new object for what is loaded already: opening a file by its name could load a second copy of it."""
    from llama_cpp import _ctypes_extensions as extensions
    from llama_cpp import llama_cpp

    if os.name == "nt":  # where a library does not answer for those that it uses, and has one file
        return extensions.load_shared_library(name, Path(llama_cpp.__file__).parent / "lib")
    return ctypes.CDLL(llama_cpp._lib._name, handle=llama_cpp._lib._handle)


def forget_errors() -> None:
    """Begin a call whose failure `recent_errors` shall explain."""
    _said.errors = deque(maxlen=5)


def recent_errors() -> str:
    """What the library has said since `forget_errors`, on one line."""
    return "; ".join(getattr(_said, "errors", ())) or "llama.cpp gave no reason"


def _forward(level: int, text: bytes, _data: object) -> None:
    line = text.decode("utf-8", errors="replace").rstrip()
    if not line or level == _CONTINUES:
        return
    if level == _ERROR:
        if not hasattr(_said, "errors"):
            forget_errors()
        _said.errors.append(line)
    logger.log(_LEVELS.get(level, logging.DEBUG), "%s", line)
