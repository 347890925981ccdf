"""Where the vision tower runs, and that a tile is never computed twice."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np
import pytest

from ayaedge import AyaVision, BackendError, InvalidOptionError, VisionOptions
from ayaedge.bundle import Bundle, demo_bundle, read_bundle
from ayaedge.hardware.machine import Processor
from ayaedge.vision import session as vision_session
from ayaedge.vision.encoder import VisionEncoder

CPU = "CPUExecutionProvider"
HASWELL = Processor("Haswell", "x86_64", 4, 8, frozenset({"avx2", "fma", "sse4_2"}))


@pytest.fixture
def demo() -> Bundle:
    return read_bundle(demo_bundle())


@pytest.fixture
def encoder(demo: Bundle) -> Iterator[VisionEncoder]:
    encoder = VisionEncoder(demo.vision_path, demo.manifest)
    yield encoder
    encoder.close()


def noise(demo: Bundle, count: int) -> np.ndarray:
    size = demo.manifest.tiling.tile_size
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_equal_tiles_are_encoded_once(demo: Bundle, encoder: VisionEncoder) -> None:
    runs = []
    graph = encoder.run
    encoder.run = lambda pixels: runs.append(len(pixels)) or graph(pixels)  # type: ignore[method-assign, func-returns-value]
    tiles = noise(demo, 3)
    seen = []
    features = encoder.encode(tiles[[0, 1, 0, 2, 1]], on_tile=lambda done, of: seen.append((done, of)))
    assert runs == [1, 1, 1]
    assert seen == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    np.testing.assert_array_equal(features[0], features[2])


def test_a_tile_alone_and_in_any_batch_is_bit_identical(demo: Bundle, encoder: VisionEncoder) -> None:
    from ayaedge.images.tiling import normalize

    pixels = normalize(noise(demo, 5), demo.manifest.tiling)
    alone = np.concatenate([encoder.run(pixels[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(encoder.run(pixels), alone)
    np.testing.assert_array_equal(encoder.run(pixels[3:]), alone[3:])


def test_auto_runs_on_what_is_installed(encoder: VisionEncoder) -> None:
    assert encoder.provider == CPU
    encoder.warm_up()


def test_a_missing_device_says_what_to_install(demo: Bundle) -> None:
    with pytest.raises(InvalidOptionError, match=r"pip install onnxruntime-gpu"):
        VisionEncoder(demo.vision_path, demo.manifest, VisionOptions(device="cuda"))


def test_an_int8_tower_is_not_for_graphics_processors(
    demo: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    with pytest.raises(InvalidOptionError, match='vision="fp16"'):
        VisionEncoder(demo.vision_path, demo.manifest, VisionOptions(device="cuda"))
    with caplog.at_level(logging.INFO):
        encoder = VisionEncoder(demo.vision_path, demo.manifest, VisionOptions(device="auto"))
    assert encoder.provider == CPU
    assert "fp16 would run on CUDAExecutionProvider" in caplog.text


def test_a_device_that_does_not_start_is_an_error_if_named_and_a_warning_if_chosen(
    exact_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    monkeypatch.setattr(vision_session, "make_session", cpu_session(vision_session.make_session))
    with pytest.raises(BackendError, match="could not start CUDAExecutionProvider"):
        VisionEncoder(exact_bundle.vision_path, exact_bundle.manifest, VisionOptions(device="cuda"))
    with caplog.at_level(logging.WARNING):
        encoder = VisionEncoder(exact_bundle.vision_path, exact_bundle.manifest)
    assert encoder.provider == CPU
    assert "runs on the CPU" in caplog.text


def cpu_session(make):  # type: ignore[no-untyped-def]
    """ONNX Runtime falls back to the processor without an error when a driver is missing."""
    return lambda path, settings, providers=(CPU,): make(path, settings, (CPU,))


def test_int8_does_not_saturate_on_processors_without_byte_products(
    demo: Bundle, encoder: VisionEncoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vision_session, "processor", lambda: HASWELL)
    caplog.set_level(logging.INFO, "ayaedge.vision.session")
    careful = VisionEncoder(demo.vision_path, demo.manifest)
    record = caplog.records[-1]
    assert 'vision="int8-block" is faster here' in record.getMessage()
    assert record.levelno == logging.INFO  # a small tower takes no time either way
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 3, *[demo.manifest.tiling.tile_size] * 2))
    pixels = pixels.astype(np.float32)
    np.testing.assert_allclose(careful.run(pixels), encoder.run(pixels), rtol=0, atol=0.05)
    blocks = dataclasses.replace(
        demo.manifest, formats=dataclasses.replace(demo.manifest.formats, vision="int8-block")
    )
    caplog.clear()
    VisionEncoder(demo.vision_path, blocks)
    assert "faster here" not in caplog.text
    monkeypatch.setattr(vision_session, "_LARGE_GRAPH", 0)
    VisionEncoder(demo.vision_path, demo.manifest)
    assert caplog.records[-1].levelno == logging.WARNING


def test_the_progress_of_a_question_counts_tiles_and_tokens() -> None:
    image = np.random.default_rng(0).integers(0, 256, (320, 480, 3), dtype=np.uint8)
    steps: list[tuple[str, int, int]] = []
    with AyaVision.load() as model:
        answer = model.ask("?", images=[image], max_tokens=1, on_progress=lambda *step: steps.append(step))
    tiles = answer.usage.tiles[0]
    assert [step for step in steps if step[0] == "vision"] == [
        ("vision", done, tiles) for done in range(1, tiles + 1)
    ]
    left = answer.usage.prompt_tokens - answer.usage.cached_tokens
    assert steps[-1] == ("prefill", left, left)
