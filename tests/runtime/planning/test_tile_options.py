"""What a program may show of an image before it asks: its grids, and what each costs."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ayaedge import AyaVision, ImageError, Page, Speeds, count_pages

IMAGES = Path(__file__).parents[3] / "examples" / "pictures"
CELLS, HEART = IMAGES / "six-cells.png", IMAGES / "one-heart.png"
QUESTION = "What number is at the bottom left?"
SLOW = Speeds(tile=6.0, prompt_token=0.03, prompt_growth=0.0, answer_token=0.2, answer_growth=0.0)


def test_each_limit_on_tiles_shows_the_grid_that_a_question_gets(demo_model: AyaVision) -> None:
    options = demo_model.tile_options([CELLS, HEART])
    for option in options:
        answer = demo_model.ask(QUESTION, images=[CELLS, HEART], max_tiles=option.max_tiles, max_tokens=1)
        assert answer.usage.images == option.images
        shown = [{"type": "image", "image": path.read_bytes()} for path in (CELLS, HEART)]
        messages = [{"role": "user", "content": [*shown, {"type": "text", "text": "a"}]}]
        counted = demo_model.count_tokens(messages, max_tiles=option.max_tiles)
        assert option.prompt_tokens == counted + 64
    assert len(options) > 4
    assert [option.seconds for option in options] == [None] * len(options)


def test_seconds_are_those_of_the_speeds_and_small_images_may_stay_small(demo_model: AyaVision) -> None:
    options = demo_model.tile_options(CELLS, speeds=SLOW)
    for option in options:
        assert option.seconds == pytest.approx(6 * option.images[0].tiles + 0.03 * option.prompt_tokens)
    native = demo_model.tile_options(Image.new("RGB", (50, 50)), tiles="native")
    assert [option.images[0].tiles for option in native] == [1]


def test_costs_are_told_while_an_answer_is_written(demo_model: AyaVision) -> None:
    begun, go = threading.Event(), threading.Event()
    handle = demo_model.submit(
        "Describe the picture.", images=CELLS, on_text=lambda _: (begun.set(), go.wait(30))
    )
    assert begun.wait(30)
    assert demo_model.tile_options(CELLS)
    assert not handle.done()
    go.set()
    assert handle.result().text


def test_pages_of_a_document_are_counted_and_have_their_grids(demo_model: AyaVision) -> None:
    pytest.importorskip("pypdfium2", reason="documents need the extra pdf")
    file = io.BytesIO()
    first, second = (Image.open(picture).convert("RGB") for picture in (HEART, CELLS))
    first.save(file, "PDF", save_all=True, append_images=[second])
    assert count_pages(file.getvalue()) == 2
    page = Page(file.getvalue(), 2)
    option = demo_model.tile_options(page)[-1]
    answer = demo_model.ask(QUESTION, images=page)
    (planned,), (read,) = option.images, answer.usage.images
    assert (planned.columns, planned.rows, planned.tokens) == (read.columns, read.rows, read.tokens)
    assert answer.text == "2675"
    assert count_pages(CELLS) is None


def test_what_cannot_be_read_is_an_error(demo_model: AyaVision) -> None:
    for look in (demo_model.tile_options, count_pages):
        with pytest.raises(ImageError, match=r"there is no image at nowhere\.png"):
            look("nowhere.png")


def test_an_image_that_was_read_can_be_shown_again(demo_model: AyaVision) -> None:
    with Image.open(CELLS) as opened:
        given = opened.convert("RGB")
    encoded = demo_model.encode_image(given)
    shown = encoded.to_image()
    assert shown.size == given.size
    difference = np.abs(np.asarray(shown, float) - np.asarray(given, float))
    assert difference.mean() < 8, "it was made smaller for the tiles, and nothing else"
    assert np.abs(np.asarray(shown.rotate(180), float) - np.asarray(given, float)).mean() > 30
    assert demo_model.ask(QUESTION, images=shown).text == "2675"
