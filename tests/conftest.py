"""What several tests share: the trained checkpoint, its bundles, and random checkpoints of any shape."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

ALL_PROCESSORS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
if ALL_PROCESSORS and "PYTEST_XDIST_WORKER" in os.environ:
    # each worker has a processor of its own: two threads that wait for each other next to another worker's waste both
    _worker = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(ALL_PROCESSORS)[_worker % len(ALL_PROCESSORS)]})
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "AYAEDGE_ACCELERATION", "off"
)  # what is faster depends on what else runs; its tests name kernels
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads that wait spin, next to another worker's tests
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from filelock import FileLock

from ayaedge import AyaVision, DecoderOptions
from ayaedge.bundle import Bundle, read_bundle
from ayaedge.cache.verified import HASHING
from ayaedge.decoder.decoder import Decoder
from ayaedge.hardware.machine import processor
from ayaedge_export.evaluation.reference import Reference
from ayaedge_export.exporter import export_checkpoint
from random_checkpoint import write_shrunk_release

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background

WIDE_WINDOW = 512
LONGEST = (
    "test_offline",
    "test_trained",
    "test_best",
    "test_rounding",
    "test_chat_terminal",
    "test_fuzz",
    "test_cli",
    "test_conversation",
    "test_bundle",
    "test_prompt",
    "test_docs",
    "test_parity",
    "test_full_size",
    "test_prefix_cache",
    "test_gguf_writer",
    "test_page",
    "test_exporter",
    "test_examples",
    "test_sampling",
    "test_benchmark",
    "test_logit_scale",
    "test_json_schema",
    "test_gptq_sweep",
    "test_no_home",
    "test_sensitivity",
    "test_stress",
    "test_isolated",
    "test_imatrix",
    "test_repacking",
    "test_token_embeddings",
    "test_tuning",
    "test_checkpoint",
)
"""Files of more than 8 seconds of a processor, the longest first."""
ROOT = Path(__file__).parents[1]
TINY = ROOT / "examples" / "tiny-aya-vision"
if not (TINY / "model.safetensors").exists():
    TINY = ROOT.parent / "shared" / "tiny-aya-vision" / "checkpoint"
REFERENCE_FILES = ROOT.parent / "shared" / "reference"
"""Configurations and tokenizers of the released checkpoints; they are not part of this repository."""


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A directory that the first worker that needs it makes, for all of them; nobody may change what is in it."""
    root = factory.getbasetemp()
    place = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "made_once" / name
    place.parent.mkdir(exist_ok=True)
    with FileLock(place.with_suffix(".lock")):
        if not place.exists():
            make(place)
    return place


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """States are kept where the tests are, also those of processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AYAEDGE_CACHE_DIR", str(tmp_path_factory.mktemp("states")))
        yield


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Commands that run in this process set levels and handlers for good."""
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "ayaedge"]
    loggers = {logging.getLogger(name) for name in (*names, "ayaedge", HASHING)}
    before = {logger: (logger.level, list(logger.handlers)) for logger in loggers}
    yield
    for logger, (level, handlers) in before.items():
        if logger.level != level:  # setting one looks at every logger that there is
            logger.setLevel(level)
        logger.handlers = handlers


@pytest.fixture(scope="session")
def tiny() -> Path:
    return TINY


@pytest.fixture(scope="session")
def released_files() -> Path:
    if not REFERENCE_FILES.is_dir():
        pytest.skip("the released checkpoints' configurations and tokenizers are not here")
    return REFERENCE_FILES


@pytest.fixture(scope="session")
def reference(tiny: Path) -> Reference:
    return Reference(tiny)


@pytest.fixture(scope="session")
def exact_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The trained checkpoint in full precision."""
    export = partial(export_checkpoint, tiny, quant="f32", vision="fp32")
    return read_bundle(made_once(tmp_path_factory, "exact", export))


@pytest.fixture(scope="session")
def portable_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The trained checkpoint for processors and GPUs, those with 16-bit floats and those without."""
    export = partial(export_checkpoint, tiny, vision=["fp16", "int8", "fp32"])
    return read_bundle(made_once(tmp_path_factory, "portable", export))


@pytest.fixture(scope="session")
def exact_model(exact_bundle: Bundle) -> Iterator[AyaVision]:
    with AyaVision.load(exact_bundle.directory, decoder=DecoderOptions(cache_type="f32")) as model:
        yield model


@pytest.fixture(scope="session")
def wide_bundle(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained checkpoint with a sliding window as long, against its prompts, as the released one's."""
    checkpoint = shutil.copytree(tiny, tmp_path_factory.mktemp("wide") / "c")
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    config["text_config"]["sliding_window"] = WIDE_WINDOW
    (checkpoint / "config.json").write_text(json.dumps(config))
    return made_once(tmp_path_factory, "wide", partial(export_checkpoint, checkpoint))


@pytest.fixture(scope="session")
def endless(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options with which every answer goes on for minutes, on the fastest machine and on a busy one."""
    from safetensors.torch import load_file, save_file  # PyTorch: seconds before the workers are even started

    checkpoint = shutil.copytree(tiny, tmp_path_factory.mktemp("endless") / "c")
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    config["text_config"]["max_position_embeddings"] = 1 << 17
    (checkpoint / "config.json").write_text(json.dumps(config))
    weights = load_file(checkpoint / "model.safetensors")
    (name,) = (name for name in weights if name.endswith("embed_tokens.weight"))
    weights[name][config["text_config"]["eos_token_id"]] = 0  # the end of a turn is never the likeliest token
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    bundle = made_once(tmp_path_factory, "endless", partial(export_checkpoint, checkpoint))
    return ["-m", str(bundle), "-c", "100000"]


@pytest.fixture
def all_processors() -> Iterator[None]:
    """Every processor of the machine, for a test about threads."""
    if not ALL_PROCESSORS:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, ALL_PROCESSORS)
    processor.cache_clear()
    yield
    os.sched_setaffinity(0, before)
    processor.cache_clear()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all decode calls since the list was cleared."""
    sizes: list[int] = []
    decode = Decoder._decode

    def watched(self: Decoder, count: int, **batch: Any) -> None:
        sizes.append(count)
        decode(self, count, **batch)

    monkeypatch.setattr(Decoder, "_decode", watched)
    return sizes


@pytest.fixture(scope="session")
def demo_model() -> Iterator[AyaVision]:
    """The bundle that ships with the package."""
    with AyaVision.load() as model:
        yield model


@pytest.fixture(scope="session", params=["aya-vision-8b", "aya-vision-32b"])
def shrunk_release(
    request: pytest.FixtureRequest, released_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A released checkpoint's configuration and tokenizer around tiny random weights."""
    name = str(request.param)
    write = partial(write_shrunk_release, released=released_files / name)
    return made_once(tmp_path_factory, name, write)


@pytest.fixture(scope="session")
def shrunk_release_bundle(shrunk_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    export = partial(export_checkpoint, shrunk_release, quant="f16", vision="fp32")
    return read_bundle(made_once(tmp_path_factory, f"{shrunk_release.name}-bundle", export))


def pytest_collection() -> None:
    """Search for nothing that has died while tests are collected: all of it lives."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker has one left when the other is done."""
    order = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def pytest_collection_finish() -> None:
    """Leave the modules, which live until the end, out of the hundreds of searches for what has died."""
    gc.enable()
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what commands were seen to do outside of their processes (`test_offline.py`)."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    found = [value for report in reports for name, value in report.user_properties if name == "seen"]
    for text in found:
        terminalreporter.write_line(str(text))
