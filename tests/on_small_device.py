"""A software driver's device with as much memory as a test says, and what is done on it: see `gpu/small_device.c`."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ayaedge import OutOfMemoryError, llama
from ayaedge.bundle import read_bundle
from ayaedge.cache.options import NO_CACHE
from ayaedge.decoder.decoder import Decoder
from ayaedge.decoder.gguf_header import read_figures
from ayaedge.decoder.options import DecoderOptions
from ayaedge.hardware.devices import decoder_gpus, device_list
from ayaedge.planning.gpu_plan import gpu_bytes
from ayaedge.planning.placement import resolve
from on_vulkan import divergence, sizes_in_the_log, tokens

_SOURCE = Path(__file__).parent / "gpu" / "small_device.c"
_HEADERS = Path(__file__).parents[1] / "build" / "gpu" / "headers" / "usr" / "include"
_NAME = "VK_LAYER_AYAEDGE_small_device"
_FIELDS = struct.Struct("=4Q")
"""Limit, bytes that are taken, the most that ever were, and allocations that were refused."""


class SmallDevice:
    """What the layer counts, for all processes together."""

    def __init__(self, path: Path):
        self.path = path
        self.set(0)

    def set(self, limit: int) -> None:
        """Another limit; everything is counted anew, but for what is taken."""
        taken = self.taken if self.path.exists() else 0
        self.path.write_bytes(_FIELDS.pack(limit, taken, taken, 0))

    @property
    def taken(self) -> int:
        return int(self._fields[1])

    @property
    def peak(self) -> int:
        return int(self._fields[2])

    @property
    def refused(self) -> int:
        return int(self._fields[3])

    @property
    def _fields(self) -> tuple[int, ...]:
        return _FIELDS.unpack(self.path.read_bytes())


@pytest.fixture
def small_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SmallDevice:
    """Let children of this test see such a device."""
    library = tmp_path / "small_device.so"
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", f"-I{_HEADERS}", "-o", str(library), str(_SOURCE)], check=True
    )
    functions = {
        "vkGetInstanceProcAddr": "small_device_instance",
        "vkGetDeviceProcAddr": "small_device_device",
    }
    layer = {
        "name": _NAME, "type": "GLOBAL", "library_path": str(library), "api_version": "1.3.0",
        "implementation_version": "1", "description": "a small device", "functions": functions,
    }  # fmt: skip
    (tmp_path / "layer.json").write_text(json.dumps({"file_format_version": "1.1.2", "layer": layer}))
    counted = SmallDevice(tmp_path / "device")
    monkeypatch.setenv("VK_LAYER_PATH", str(tmp_path))
    monkeypatch.setenv("VK_INSTANCE_LAYERS", _NAME)
    monkeypatch.setenv("AYAEDGE_SMALL_DEVICE", str(counted.path))
    return counted


def hold(size: int) -> Iterator[int]:
    """Take `size` bytes of the device, as another program would, until asked a second time."""
    handle = ctypes.c_void_p
    base = llama.native_library(
        "ggml-base",
        ggml_backend_dev_buffer_type=(handle, [handle]),
        ggml_backend_buft_alloc_buffer=(handle, [handle, ctypes.c_size_t]),
        ggml_backend_buffer_free=(None, [handle]),
    )
    device = device_list(decoder_gpus())[0]
    taken = base.ggml_backend_buft_alloc_buffer(base.ggml_backend_dev_buffer_type(device), size)
    assert taken
    yield size
    base.ggml_backend_buffer_free(taken)
    yield 0


def load_and_wait(directory: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Load a decoder with its layers on the device; then decode a prompt as often as asked.

    Yields the decoder's layers and warnings, then what is wrong, or the KL divergence to the processor.
    """
    bundle = read_bundle(directory)
    with Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(gpu_layers=0)) as decoder:
        exact = _logits(decoder)
    with (
        warnings_of("ayaedge.decoder.decoder") as warned,
        Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(**options)) as decoder,
    ):
        yield {"layers": decoder.gpu_layers, "warned": warned}
        while True:
            decoder.clear()
            try:
                yield {"kl": divergence(exact, _logits(decoder)), "fault": ""}
            except OutOfMemoryError as error:
                yield {"fault": str(error)}


def plan_and_load(directory: str, choices: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """MiB that a plan says of each of these options, and llama.cpp's log, when a decoder is loaded with them."""
    bundle = read_bundle(directory)
    figures = read_figures(bundle.decoder_path)
    for choice in choices:
        options = DecoderOptions(**choice)
        with sizes_in_the_log() as sizes, Decoder(bundle.decoder_path, bundle.manifest, options) as decoder:
            layers = decoder.gpu_layers
        planned = gpu_bytes(
            figures, layers, context=options.context_of(bundle.manifest.decoder.context_length),
            batch=options.rows_at_once, prompts=bool(options.offload_prompts),
            flash_attention=options.uses_flash,
        )  # fmt: skip
        yield {"layers": layers, "planned": planned / 2**20, "taken": sum(sizes.values())}


def load_and_answer(directory: str, choices: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Load a decoder with each of these options, and decode a prompt of six tokens and two more.

    Yields layers that are on the device, warnings, KL divergence to the processor, and MiB: planned, by the log, taken
    of the device when loaded and in use, free afterwards. Of options without `gpu_layers` as many as the plan says.
    """
    bundle = read_bundle(directory)
    figures = read_figures(bundle.decoder_path)
    exact = None
    for choice in choices:
        options = DecoderOptions(**choice)
        if options.gpu_layers is None:
            options = resolve(bundle, "vulkan", options, cache=NO_CACHE).decoder
        with (
            warnings_of("ayaedge.decoder.decoder") as warned,
            sizes_in_the_log() as sizes,
            Decoder(bundle.decoder_path, bundle.manifest, options) as decoder,
        ):
            loaded = _taken()
            logits = _logits(decoder)
            layers, used = decoder.gpu_layers, _taken()
        if exact is None:
            with Decoder(bundle.decoder_path, bundle.manifest, DecoderOptions(gpu_layers=0)) as decoder:
                exact = _logits(decoder)
        planned = gpu_bytes(
            figures, layers, context=options.context_of(bundle.manifest.decoder.context_length),
            batch=options.rows_at_once,
        )  # fmt: skip
        yield {
            "asked": options.gpu_layers, "layers": layers, "warned": warned, "kl": divergence(exact, logits),
            "planned": planned / 2**20, "sizes": sizes,
            "loaded": loaded / 2**20, "used": used / 2**20, "free": decoder_gpus()[0].free_bytes / 2**20,
        }  # fmt: skip


def _taken() -> int:
    return int(_FIELDS.unpack(Path(os.environ["AYAEDGE_SMALL_DEVICE"]).read_bytes())[1])


def _logits(decoder: Decoder) -> Any:
    ids, rows = tokens(decoder, 6), []
    for part in (ids, ids[:1], ids[1:2]):
        decoder.decode_tokens(part)
        rows.append(decoder.last_logits())
    return np.stack(rows)


class warnings_of:  # noqa: N801 - a context manager
    """The messages of a logger's warnings, as a list."""

    def __init__(self, name: str):
        self._logger, self._found = logging.getLogger(name), list[str]()

    def __enter__(self) -> list[str]:
        self._handler = logging.Handler(logging.WARNING)
        self._handler.emit = lambda record: self._found.append(record.getMessage())  # type: ignore[method-assign]
        self._logger.addHandler(self._handler)
        return self._found

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)
