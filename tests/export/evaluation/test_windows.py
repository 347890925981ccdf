from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ayaedge import AyaVision, InvalidOptionError
from ayaedge_export.evaluation.sample_text import SENTENCES
from ayaedge_export.evaluation.windows import (
    BUILTIN,
    IMAGE_TEXT,
    UNNAMED,
    draw_image,
    drawn_tiles,
    make_windows,
    read_passages,
)


def test_the_builtin_text_has_every_language() -> None:
    assert set(read_passages(BUILTIN)) == set(SENTENCES)


def test_a_file_of_json_lines_names_its_languages(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    items = [
        {"language": "fr", "text": "Un"},
        {"language": "de", "text": "Zwei"},
        {"language": "fr", "text": "Trois"},
    ]
    path.write_text("\n\n".join(json.dumps(item) for item in items) + '\n{"text": "four"}\n', "utf-8")
    assert read_passages(path) == {"fr": ["Un", "Trois"], "de": ["Zwei"], UNNAMED: ["four"]}


def test_any_other_file_is_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("\ufeffOne line\nand another.\r\n\r\n\n\nA second paragraph.\n", "utf-8")
    assert read_passages(path) == {UNNAMED: ["One line\nand another.", "A second paragraph."]}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("t.jsonl", '{"text": "a"}\n{"text": 5}\n', 't.jsonl, line 2: expected an object like {"language"'),
        ("t.jsonl", '{"text": "a"}\n{"te\n', "t.jsonl, line 2"),
        ("t.txt", " \n\n ", "there is no text in"),
        ("none.txt", None, "none.txt cannot be read"),
    ],
)
def test_a_text_that_cannot_be_read_says_why(
    tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(InvalidOptionError) as caught:
        read_passages(tmp_path / name)
    assert says in str(caught.value)


def test_long_text_becomes_several_windows_and_no_token_is_lost(demo_model: AyaVision) -> None:
    manifest, tokenize = demo_model.bundle.manifest, demo_model._engine.decoder.vocabulary.tokenize
    texts = [sentence + " " + sentence for sentence in SENTENCES.values()]
    windows = make_windows({"all": texts}, manifest, tokenize, length=100, images=False)
    ids = tokenize("\n".join(texts))
    assert [token for window in windows for token in window.prompt.ids[1:]] == ids[
        : len(ids) // 99 * 99
    ] or len(ids) % 99 >= 8
    assert all(window.prompt.ids[0] == manifest.tokens.bos for window in windows)
    assert max(len(window.prompt.ids) for window in windows) == 100
    assert len({window.key for window in windows}) == len(windows)


def test_a_window_behind_an_image_begins_where_the_image_ends(demo_model: AyaVision) -> None:
    manifest, tokenize = demo_model.bundle.manifest, demo_model._engine.decoder.vocabulary.tokenize
    texts = {"fr": ["mot " * 1000], "de": ["kurz"]}
    windows = [w for w in make_windows(texts, manifest, tokenize) if w.image is not None]
    assert [w.key for w in windows] == ["fr/image", "de/image"]
    long, short = windows
    assert long.first == long.prompt.images[0].stop
    assert len(long.prompt.ids) - long.first == IMAGE_TEXT
    assert 0 < len(short.prompt.ids) - short.first < IMAGE_TEXT
    ranges = list(long.ranges(10))
    assert [p for start, stop in ranges for p in range(start, stop)] == list(range(len(long.prompt.ids)))
    for start, stop in ranges:
        assert stop - start <= 10
        assert len({long.in_image(position) for position in range(start, stop)}) == 1


def test_images_are_always_the_same_and_differ(demo_model: AyaVision) -> None:
    manifest = demo_model.bundle.manifest
    first = drawn_tiles(0, manifest)
    assert first.shape == (1, manifest.tiling.tile_size, manifest.tiling.tile_size, 3)
    assert np.array_equal(first, drawn_tiles(0, manifest))
    assert not np.array_equal(first, drawn_tiles(1, manifest))
    assert draw_image(2, 364).size == (364, 364)
