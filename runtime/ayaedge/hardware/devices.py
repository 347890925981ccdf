"""Which processors of this computer the decoder can use, and the words for devices of both halves.

What is there is asked of llama.cpp as it is installed, never guessed. Nothing is loaded here and no memory is taken.
Devices of the vision tower are in `ayaedge.hardware.vision_devices`.
"""

from __future__ import annotations

import ctypes
import logging
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ayaedge import llama
from ayaedge.errors import InvalidOptionError
from ayaedge.hardware.machine import architecture

logger = logging.getLogger(__name__)

Device = Literal["auto", "cpu", "cuda", "metal", "vulkan", "webgpu", "coreml", "openvino"]

BACKENDS: tuple[Device, ...] = ("cuda", "metal", "vulkan")
"""The decoder's devices that can be asked for by name, the best first."""
_WHEELS = {"cuda": "cu124"}
"""The author's index of wheels for a backend, where it is not called like it; CUDA 12.4 runs on every driver since."""

_GPU, _INTEGRATED = 1, 2
"""Of `ggml_backend_dev_type`."""
_BACKEND_NAMES = {"mtl": "metal"}


@dataclass(frozen=True)
class Gpu:
    """A graphics processor, as llama.cpp sees it."""

    name: str
    """`CUDA0`, `Vulkan1`."""
    description: str
    backend: str
    """`cuda`, `metal`, `vulkan`, `rocm`, `sycl`, ..."""
    total_bytes: int
    free_bytes: int
    """0, like `total_bytes`, if the driver does not tell."""
    integrated: bool = False
    """Uses main memory; llama.cpp leaves it alone where there is another one."""

    @property
    def shares_memory(self) -> bool:
        """Whether its memory is main memory: that of integrated ones, and of Apple's own processors."""
        return self.integrated or (self.backend == "metal" and architecture(platform.machine()) == "arm64")


def decoder_gpus() -> list[Gpu]:
    """The graphics processors that this build of llama.cpp can use, in its order."""
    registry, base = _registry()
    devices = [registry.ggml_backend_dev_get(index) for index in range(registry.ggml_backend_dev_count())]
    return [
        _gpu(base, device) for device in devices if base.ggml_backend_dev_type(device) in (_GPU, _INTEGRATED)
    ]


def device_list(gpus: Sequence[Gpu]) -> Any:
    """The handles of these processors, as `llama_model_params.devices` wants them: an array with NULL at its end."""
    registry, base = _registry()
    devices = [registry.ggml_backend_dev_get(index) for index in range(registry.ggml_backend_dev_count())]
    names = [gpu.name for gpu in gpus]
    chosen = [device for device in devices if base.ggml_backend_dev_name(device).decode() in names]
    return (ctypes.c_void_p * (len(chosen) + 1))(*chosen, None)


def has_room(gpus: Sequence[Gpu], size: int) -> bool:
    """Whether each of these has `size` bytes left: they are taken, and given back."""
    _, base = _registry()
    for device in device_list(gpus)[:-1]:
        taken = base.ggml_backend_buft_alloc_buffer(base.ggml_backend_dev_buffer_type(device), size)
        if not taken:
            return False
        base.ggml_backend_buffer_free(taken)
    return True


def decoder_backends() -> list[str]:
    """What this build of llama.cpp was compiled for, whether or not there is such a device: `cpu`, `cuda`, ..."""
    registry, base = _registry()
    return [
        _backend_name(base.ggml_backend_reg_name(registry.ggml_backend_reg_get(index)))
        for index in range(registry.ggml_backend_reg_count())
    ]


def choose_decoder(device: Device, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The graphics processors that the decoder shall use, all of one kind; none means the processor.

    InvalidOptionError with the command that builds it if a device was asked for by name and is missing. WebGPU and
    OpenVINO concern the vision tower only; with CoreML the decoder uses Metal where it can.
    """
    if device == "auto":
        chosen = _best(gpus)
        logger.info("the decoder runs on %s", ", ".join(gpu.name for gpu in chosen) or "the processor")
        return chosen
    backend = "metal" if device == "coreml" else device
    if backend not in BACKENDS:
        return []
    chosen = _best([gpu for gpu in gpus if gpu.backend == backend])
    if not chosen and device != "coreml":
        raise InvalidOptionError(
            f"device is {device!r}, but this build of llama-cpp-python sees no such device; if there is one, "
            f"build it anew: {decoder_command(backend)}"
        )
    return chosen


def decoder_command(backend: str, system: str = "") -> str:
    """The command that builds llama-cpp-python for one of `BACKENDS`; for PowerShell on Windows."""
    arguments = f"-DGGML_{backend.upper()}=on"
    install = (
        "pip install --force-reinstall --no-deps --no-cache-dir --no-binary llama-cpp-python "
        f'"{llama.REQUIREMENT}"'
    )
    if (system or platform.system()) == "Windows":
        return f'$env:CMAKE_ARGS="{arguments}"; {install}'
    return f'CMAKE_ARGS="{arguments}" {install}'


def decoder_wheel_command(backend: str) -> str:
    """The command that installs llama-cpp-python for one of `BACKENDS` as its author has built it."""
    return llama.wheel_command(_WHEELS.get(backend, backend))


def fewer_layers(layers: int) -> int:
    """How many layers to try after `layers` of them ran out of memory: three quarters, in the end 0."""
    return max(0, min(layers * 3 // 4, layers - 1))


def _best(gpus: Sequence[Gpu]) -> list[Gpu]:
    """All of the best kind; integrated ones only where there are no others, as llama.cpp itself would choose."""
    candidates = [gpu for gpu in gpus if not gpu.integrated] or list(gpus)
    ranks: dict[str, int] = {backend: rank for rank, backend in enumerate(BACKENDS)}
    kinds = sorted({gpu.backend for gpu in candidates}, key=lambda kind: (ranks.get(kind, len(ranks)), kind))
    return [gpu for gpu in candidates if gpu.backend == kinds[0]]


def _gpu(base: Any, device: int) -> Gpu:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    base.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
    return Gpu(
        name=base.ggml_backend_dev_name(device).decode(),
        description=base.ggml_backend_dev_description(device).decode(errors="replace"),
        backend=_backend_name(base.ggml_backend_reg_name(base.ggml_backend_dev_backend_reg(device))),
        total_bytes=total.value,
        free_bytes=free.value,
        integrated=base.ggml_backend_dev_type(device) == _INTEGRATED,
    )


def _backend_name(registered: bytes) -> str:
    name = registered.decode().lower()
    return _BACKEND_NAMES.get(name, name)


@cache
def _registry() -> tuple[Any, Any]:
    """The libraries that know the devices (ggml) and what they are (ggml-base), with their functions declared."""
    llama.library().llama_supports_gpu_offload()  # loads the backends that are libraries of their own
    handle, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    sizes = ctypes.POINTER(size)
    registry = llama.native_library(
        "ggml",
        ggml_backend_dev_count=(size, []),
        ggml_backend_dev_get=(handle, [size]),
        ggml_backend_reg_count=(size, []),
        ggml_backend_reg_get=(handle, [size]),
    )
    base = llama.native_library(
        "ggml-base",
        ggml_backend_dev_name=(text, [handle]),
        ggml_backend_dev_description=(text, [handle]),
        ggml_backend_dev_memory=(None, [handle, sizes, sizes]),
        ggml_backend_dev_type=(ctypes.c_int, [handle]),
        ggml_backend_dev_backend_reg=(handle, [handle]),
        ggml_backend_dev_buffer_type=(handle, [handle]),
        ggml_backend_buft_alloc_buffer=(handle, [handle, size]),
        ggml_backend_buffer_free=(None, [handle]),
        ggml_backend_reg_name=(text, [handle]),
    )
    return registry, base
