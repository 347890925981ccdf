"""The ONNX Runtime session of a vision tower: options, devices, prepared graphs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from ayaedge import ort
from ayaedge.cache.prepared_graphs import DATA, GRAPH, PreparedGraphs
from ayaedge.cancellation import interruptible
from ayaedge.checks import check_options, instance, make_plain, whole_number
from ayaedge.decoder.options import MAX_THREADS
from ayaedge.errors import BackendError, BundleError, InvalidOptionError
from ayaedge.hardware.devices import Device
from ayaedge.hardware.machine import processor, usable_threads
from ayaedge.hardware.vision_devices import (
    CPU_PROVIDER,
    VisionDevice,
    choose_vision,
    device_fault,
    vision_devices,
)
from ayaedge.manifest import VISION, Manifest
from ayaedge.vision.graph_check import check_graph

logger = logging.getLogger(__name__)


EXACT_PRODUCTS = {"session.x64quantprecision": "1"}
"""Lets ONNX Runtime multiply bytes in a slower way, which does not saturate on any processor."""


_WARNINGS, _FATAL = 2, 4
"""Of ONNX Runtime's log: below warnings come hundreds of lines about every step of loading."""


_WAITING = {
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "50",
    "session.force_spinning_stop": "1",
}
"""Waiting threads spin for a moment only: 20 and 100 us were 4 to 9 % faster than never, and 5 to 7 % slower beside a
busy process, where spinning without end cost 16 % and once three times. After a tile they stop at once, because the
decoder needs the processor."""


_LARGE_GRAPH = 64 << 20
"""Bytes of weights from which time matters: that for arranging them is worth keeping the result."""


_PREPARED_GROWTH = 2.1
"""Size of a prepared graph to the bundle's: it holds the weights in both orders."""


_SAVE_ENTRIES = {
    "session.optimized_model_external_initializers_file_name": DATA,
    "session.save_external_prepacked_constant_initializers": "1",
}


@dataclass(frozen=True)
class VisionOptions:
    """How the vision tower runs; None means the machine's value."""

    threads: int | None = None
    device: Device | str | None = None
    """`auto`, the default, takes the best that is installed and that the bundle's format can run on. One of several of
    a kind has its number behind it: `webgpu:1`."""
    verbose: bool = False
    """Let ONNX Runtime write its own warnings to stderr."""

    def __post_init__(self) -> None:
        make_plain(self)
        check_options(
            whole_number("threads", self.threads, least=1, most=MAX_THREADS, optional=True),
            device_fault("device", self.device, get_args(Device)),
            instance("verbose", self.verbose, bool),
        )


@dataclass(frozen=True)
class OpenSession:
    """A session, and what it runs."""

    session: Any
    """ONNX Runtime's InferenceSession."""
    device: VisionDevice | None
    """None for the processor."""
    format: str
    """Number format of the graph."""


def open_session(
    path: Path, manifest: Manifest, options: VisionOptions, prepared: PreparedGraphs | None
) -> OpenSession:
    """A session of the tower on the device that the options name, or on the best that it runs on.

    `path` is the graph for processors; those for GPUs lie next to it.
    """
    for device in _choose_devices(options.device or "auto", manifest):
        opened = start_on(device, path, manifest, options)
        if opened is not None:
            return opened
        fault = (
            f"ONNX Runtime could not start {device.provider}: its driver or libraries are missing or too old"
        )
        if options.device not in (None, "auto"):
            raise BackendError(f"{fault} (verbose shows its messages); choose the device cpu or auto")
        logger.warning("%s; the vision tower runs on the CPU", fault)
    return OpenSession(_on_processor(path, manifest, options, prepared), None, manifest.formats.vision)


def _on_processor(
    path: Path, manifest: Manifest, options: VisionOptions, prepared: PreparedGraphs | None
) -> Any:
    saturates = manifest.formats.vision == "int8" and processor().saturates
    weights = manifest.vision_bytes
    if saturates:
        logger.log(
            logging.WARNING if weights >= _LARGE_GRAPH else logging.INFO,
            "this processor has no instruction for products of bytes: the int8 vision tower runs in a slower way that "
            'cannot saturate; a bundle exported with vision="int8-block" is faster here',
        )
    entries = EXACT_PRODUCTS if saturates else {}
    if prepared is not None and weights >= _LARGE_GRAPH:
        session = _prepared_session(
            path, manifest, options, entries, prepared, _prepared_key(path, prepared, saturates)
        )
        if session is not None:
            return session
    check_graph(path, manifest)
    return make_session(path, session_options(options, entries))


def _choose_devices(device: str, manifest: Manifest) -> list[VisionDevice]:
    """The devices to be tried, none for the processor; InvalidOptionError if one that is named cannot run the graph."""
    if device == "cpu":
        return []
    found = choose_vision(device, vision_devices())[:1]
    if not found:
        logger.info("the vision tower runs on the CPU")
    if not found or manifest.gpu_graphs:
        return found
    form = manifest.formats.vision
    if device == "auto":
        logger.info("the %s vision tower runs on the CPU; fp16 would run on %s", form, found[0].provider)
        return []
    raise InvalidOptionError(
        f"the bundle's {form} vision tower runs on CPUs only: export it with "
        f'vision="fp16" for {device}, or load it with VisionOptions(device="cpu")'
    )


def session_options(options: VisionOptions, entries: Mapping[str, str]) -> Any:
    """ONNX Runtime's SessionOptions for ours, with further configuration entries."""
    settings = ort.library().SessionOptions()
    settings.log_severity_level = _WARNINGS if options.verbose else _FATAL
    settings.intra_op_num_threads = options.threads or usable_threads()
    settings.enable_cpu_mem_arena = False  # as fast, and activations go back to the system after each tile
    for name, value in {**_WAITING, **entries}.items():
        settings.add_session_config_entry(name, value)
    return settings


def start_on(
    device: VisionDevice, path: Path, manifest: Manifest, options: VisionOptions
) -> OpenSession | None:
    """A session on a GPU, of the first of the bundle's graphs that it takes; None if it takes none.

    16-bit floats come first, which some GPUs do not have.
    """
    for form, name in manifest.gpu_graphs.items():
        graph = path if name == VISION else path.with_name(name)
        check_graph(graph, manifest)
        settings = session_options(options, {})
        if device.kind == "coreml":  # a free number of tiles splits the graph there
            settings.add_free_dimension_override_by_name("tiles", 1)
        try:
            session = make_session(graph, settings, device.add_to(settings))
        except BundleError as error:
            logger.info("%s does not take the %s graph: %s", device.name, form, error)
            continue
        if session.get_providers()[0] == device.provider:
            logger.info("the %s vision tower runs on %s (%s)", form, device.name, device.description)
            return OpenSession(session, device, form)
    return None


def _prepared_key(path: Path, prepared: PreparedGraphs, saturates: bool) -> str:
    """Names everything that decides about a prepared graph; of the bundle's files what they hold, not what is said."""
    paths = [path, path.with_name(f"{path.name}.data")]
    files = [(one.name, prepared.hashes.find(one)[1]) for one in paths if one.exists()]
    cpu = processor()
    facts = (files, ort.library().__version__, cpu.name, sorted(cpu.features), saturates)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _prepared_session(
    path: Path,
    manifest: Manifest,
    options: VisionOptions,
    entries: Mapping[str, str],
    prepared: PreparedGraphs,
    key: str,
) -> Any:
    """A session from the cache, which is filled first if need be; None if that is not possible."""

    def write(target: Path) -> None:
        check_graph(path, manifest)
        saving = session_options(options, {**entries, **_SAVE_ENTRIES})
        saving.optimized_model_filepath = os.fspath(target / GRAPH)
        make_session(path, saving)

    graph = prepared.find(key) or prepared.make(key, int(manifest.vision_bytes * _PREPARED_GROWTH), write)
    if graph is None:
        return None
    settings = session_options(options, entries)
    settings.graph_optimization_level = (
        ort.library().GraphOptimizationLevel.ORT_DISABLE_ALL
    )  # it is optimised
    try:
        return make_session(graph, settings)
    except BundleError as error:
        logger.warning("a prepared vision graph was of no use and was removed: %s", error)
        prepared.forget(key)
        return None


def _end_loading(settings: Any) -> None:
    if hasattr(settings, "set_load_cancellation_flag"):  # since 1.21
        settings.set_load_cancellation_flag(True)


def make_session(path: Path, settings: Any, providers: Sequence[str] = (CPU_PROVIDER,)) -> Any:
    """An InferenceSession; BundleError if ONNX Runtime cannot load the graph.

    Without `providers` it runs where the settings say (`VisionDevice.add_to`).
    """
    try:
        # a fallback of ONNX Runtime's own would be announced on stdout
        start = partial(
            ort.library().InferenceSession,
            os.fspath(path), settings, providers=list(providers) or None, enable_fallback=False,
        )  # fmt: skip
        return interruptible(start, partial(_end_loading, settings))
    except Exception as error:
        raise BundleError(f"ONNX Runtime cannot load {path}: {error}") from error
