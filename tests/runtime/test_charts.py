from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from ayaedge.charts import _COLOURS, Panel, draw_bars, nice_step


def pixels(path: Path, colour: str) -> np.ndarray:
    return np.asarray(np.all(np.asarray(Image.open(path)) == ImageColor.getrgb(colour), axis=2))


def longest_runs(mask: np.ndarray) -> list[int]:
    """Pixels of each bar, from the top, without the legend's square."""
    rows = mask.sum(1)
    starts = np.flatnonzero((rows[1:] > 0) & (rows[:-1] == 0)) + 1
    return [int(rows[start + 3]) for start in starts][1:]


def test_bars_are_as_long_as_their_values(tmp_path: Path) -> None:
    panel = Panel("panel", {"one": [0.4, 0.1, 0.0], "two": [0.2, None, 0.4]})
    draw_bars(tmp_path / "c.png", title="t", subtitle="s", labels=["a", "bb", "c"], panels=[panel])
    one, two = (longest_runs(pixels(tmp_path / "c.png", colour)) for colour in _COLOURS[:2])
    assert len(one) >= 2
    assert one[0] == pytest.approx(4 * one[1], abs=4)
    assert two == [pytest.approx(one[0] / 2, abs=2), pytest.approx(one[0], abs=2)]


def test_the_image_grows_with_its_rows_and_panels(tmp_path: Path) -> None:
    def size(labels: int, panels: int) -> tuple[int, int]:
        names = [f"label {i}" for i in range(labels)]
        panel = Panel("panel", {"one": [1.0] * labels})
        path = tmp_path / "c.png"
        draw_bars(path, title="t", subtitle="s", labels=names, panels=[panel] * panels)
        with Image.open(path) as image:
            return image.size

    assert size(20, 1)[1] > size(5, 1)[1]
    assert size(5, 2)[0] > 1.8 * size(5, 1)[0]


def test_panels_stand_below_each_other_where_columns_end(tmp_path: Path) -> None:
    def size(columns: int | None, labels: list[str] | None) -> tuple[int, int]:
        panel = Panel("panel", {"one": [1.0] * 3})
        last = Panel("last", {"one": [1.0] * len(labels or "abc")}, labels=labels)
        path = tmp_path / "c.png"
        draw_bars(
            path, title="t", subtitle="s", labels=list("abc"), panels=[panel] * 3 + [last], columns=columns
        )
        with Image.open(path) as image:
            return image.size

    side_by_side, grid = size(None, None), size(2, None)
    assert side_by_side[0] > 1.9 * grid[0]
    assert side_by_side[1] < grid[1]
    assert size(2, list("abcdefg"))[1] > grid[1]


@pytest.mark.parametrize(
    ("largest", "step"), [(0.4, 0.1), (0.41, 0.2), (1.9, 0.5), (100, 50), (0.0007, 0.0002), (0, 1)]
)
def test_ticks_are_at_round_distances(largest: float, step: float) -> None:
    assert nice_step(largest) == pytest.approx(step)


def test_a_chart_of_zeros_can_be_drawn(tmp_path: Path) -> None:
    draw_bars(tmp_path / "c.png", title="t", subtitle="s", labels=["a"], panels=[Panel("p", {"one": [0.0]})])
    assert (tmp_path / "c.png").stat().st_size > 1000
