"""Many large images in one question: each is cut before the next one is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from ayaedge import AyaVision, ImageError, TilePolicy
from ayaedge.engine import engine
from ayaedge.hardware.speeds import Speeds
from ayaedge.images.load import load_image
from ayaedge.images.tile_budget import TileChoice
from ayaedge.images.tiling import split_tiles

SIDE, COUNT = 2000, 10
DECODED = SIDE * SIDE * 4
"""Bytes of an RGB image in Pillow."""
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def speeds() -> Speeds:
    return Speeds(0.001, 1e-6, 0.0, 0.001, 0.0)


def blank(side: int, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (9, 200, 30)).save(stream, form)
    return stream.getvalue()


def kilobytes(name: str) -> int:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


@pytest.mark.parametrize("policy", get_args(TilePolicy))
def test_a_question_of_many_images_takes_the_memory_of_one(demo_model: AyaVision, policy: TilePolicy) -> None:
    if not RESET.exists():
        pytest.skip("the system does not tell what a process has had at most")
    images, choice = [blank(SIDE)] * COUNT, TileChoice(policy)
    demo_model._engine.read(images[:1], choice, speeds)
    RESET.write_text("5")
    before = kilobytes("VmRSS")
    read = demo_model._engine.read(images, choice, speeds)
    grown = (kilobytes("VmHWM") - before) * 1024
    assert len(read) == COUNT
    assert grown < 2 * DECODED + sum(one.tiles.nbytes for one in read)
    assert 4 * grown < DECODED * COUNT  # what all of them at once would take is far more


@pytest.mark.parametrize("policy", get_args(TilePolicy))
def test_each_image_is_cut_before_the_next_is_decoded(
    demo_model: AyaVision, monkeypatch: pytest.MonkeyPatch, policy: TilePolicy
) -> None:
    steps: list[str] = []

    def noted(step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            steps.append(step)
            return call(*arguments, **keywords)

        return wrapped

    for step, name in ("size", "image_size"), ("decode", "load_rgb"), ("cut", "cut_image"):
        monkeypatch.setattr(engine, name, noted(step, getattr(engine, name)))
    demo_model._engine.read([blank(40)] * 3, TileChoice(policy), speeds)
    assert steps == ["size"] * 3 * (policy == "auto") + ["decode", "cut"] * 3


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_tiles_are_those_of_the_whole_image(demo_model: AyaVision, form: str) -> None:
    rng, stream = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (233, 377, 3), np.uint8)).save(stream, form)
    data, tiling = stream.getvalue(), demo_model.bundle.manifest.tiling
    (read,) = demo_model._engine.read([data], TileChoice(), speeds)
    np.testing.assert_array_equal(read.tiles, split_tiles(load_image(data), tiling))


def test_a_damaged_image_among_many_is_an_error(demo_model: AyaVision) -> None:
    for policy in get_args(TilePolicy):
        with pytest.raises(ImageError, match="damaged or incomplete"):
            demo_model._engine.read([blank(40), blank(40)[:-30]], TileChoice(policy), speeds)
