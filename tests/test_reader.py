"""examples/reader, used as a person would: one session without a screen, looked at from several sides."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "examples" / "pictures"
MOST_BLOCKED = 50.0
"""Milliseconds that one event may keep the window's thread: what a person just does not notice."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    first, second = (Image.open(IMAGES / f"{name}.png").convert("RGB") for name in ("one-heart", "six-cells"))
    first.save(folder / "scan.pdf", "PDF", save_all=True, append_images=[second])
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> Any:
    """What a person saw who used all of it."""
    if importlib.util.find_spec("PySide6") is None:
        pytest.skip('the reader needs Qt: pip install "PySide6_Essentials!=6.12.0"')
    pytest.importorskip("pypdfium2", reason="documents need the extra pdf")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "reader_driver.py"), str(folder)],
        capture_output=True, text=True, encoding="utf-8", check=False, cwd=ROOT, timeout=120,
        env={
            **os.environ, "QT_QPA_PLATFORM": "offscreen", "XDG_DATA_HOME": str(folder / "share"),
            "PYTHONIOENCODING": "utf-8",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for sign in "Traceback", "QObject", "QThread", "QPixmap":
        assert sign not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_the_reader_has_at_most_three_hundred_lines_of_code() -> None:
    lines = 0
    for path in (ROOT / "examples" / "reader").glob("*.py"):
        text = path.read_text("utf-8")
        lines += sum(bool(line.strip()) for line in text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                lines -= sum(bool(line.strip()) for line in ast.get_source_segment(text, node).splitlines())  # type: ignore[union-attr]
    assert 200 < lines <= 300


@pytest.mark.skipif(sys.platform != "linux", reason="the directory for data is set as on Linux")
def test_without_a_model_the_reader_lists_bundles_and_offers_the_demonstration(seen: Any) -> None:
    assert seen["names"][0] == ["aya-vision-8b"]


@pytest.mark.skipif(sys.platform != "linux", reason="the directory for data is set as on Linux")
def test_a_bundle_that_came_meanwhile_is_listed_when_another_model_is_chosen(seen: Any) -> None:
    assert sorted(seen["names"][1]) == ["aya-vision-32b", "aya-vision-8b"]


def test_what_a_picture_costs_is_shown_before_a_question_and_a_smaller_budget_makes_it_less(
    seen: Any,
) -> None:
    whole, least = seen["cost"]
    assert whole.startswith("3 × 2 tiles, 215 tokens, ")
    assert least.startswith("1 × 1 tiles, 101 tokens, ")


def test_questions_in_any_script_are_answered_and_run_in_the_direction_of_their_letters(seen: Any) -> None:
    assert seen["answers"] == ["2675", "2675", "4", "三角"]
    assert seen["copied"] == "三角"
    directions = [direction for _text, direction in seen["directions"]]
    left, right = "LeftToRight", "RightToLeft"
    assert directions == [left, left, right, left, right, left, left, left]
    assert not seen["attached"]  # the picture was shown once, follow-ups cost their own words


def test_progress_is_told_tile_by_tile_and_then_in_tokens(seen: Any) -> None:
    first, rest = [list(group) for _, group in groupby(seen["tiles"], key=lambda text: "tile" in text)][:2]
    assert first == [f"tile {tile} of 7" for tile in range(1, 8)]
    assert all(text.endswith("tokens") for text in rest)


def test_a_saved_conversation_is_opened_again_with_its_picture_which_is_not_read_twice(seen: Any) -> None:
    assert seen["reopened"] == "star"
    assert seen["shown_again"] == 0
    assert seen["recent"] == ["nowhere.png", "scan.pdf", "cells.ayachat", "six-cells.png"]


def test_pages_of_documents_and_parts_of_pages_are_asked_about(seen: Any) -> None:
    assert seen["page"] == "2675"
    assert seen["part"] == "2675"


def test_a_question_is_stopped_and_the_screen_becomes_a_picture(seen: Any) -> None:
    assert seen["stopped"] == "the request was cancelled"
    assert min(seen["screen"]) > 100


@pytest.mark.slow
def test_the_windows_thread_is_never_blocked_for_long(seen: Any) -> None:
    print(seen["blocked"])  # noqa: T201 - the figures belong to the test's output
    assert len(seen["blocked"]) == 7
    assert {what: one for what, one in seen["blocked"].items() if one["blocked"] > MOST_BLOCKED} == {}


def test_each_state_of_the_window_is_a_screenshot(seen: Any, folder: Path) -> None:
    for name in "start", "no-model", "before", "answers", "page", "screen":
        with Image.open(folder / f"{name}.png") as screenshot:
            assert screenshot.width == 1000
