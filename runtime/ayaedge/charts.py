"""Bar charts as PNG, drawn with Pillow alone: one row for each label, panels side by side or in a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_COLOURS = ("#2f6db5", "#e08a2e", "#5a9e5a", "#a0559a")
"""Told apart by colour-blind readers too, and by their lightness in print."""
_INK, _FAINT, _PAPER = "#222222", "#d9d9d9", "white"
_MARGIN, _PANEL_WIDTH, _GAP = 40, 620, 60
_BAR, _ROW_SPACE = 14, 12
_TEXT, _TITLE = 20, 28
_VALUE_SPACE = 80
"""Right of the longest bar, for its value."""
_HEADING = 160
"""Title, subtitle, legend and the first panels' titles."""
_LINE_SPACE = 120
"""Between panels that stand below each other: the upper one's scale, the lower one's title."""
_TICKS = 4


@dataclass(frozen=True)
class Panel:
    """One group of bars: each series has a value, or None, for every label."""

    title: str
    series: Mapping[str, Sequence[float | None]]
    form: str = "{:.3f}"
    """How a value is written."""
    labels: Sequence[str] | None = None
    """Of this panel alone, instead of the chart's."""


def draw_bars(
    path: Path,
    *,
    title: str,
    subtitle: str,
    labels: Sequence[str],
    panels: Sequence[Panel],
    columns: int | None = None,
) -> None:
    """Write the chart to `path`: `columns` panels side by side, by default all of them.

    All panels have the same series; each has a scale of its own, from zero.
    """
    series = list(panels[0].series)
    row = len(series) * _BAR + _ROW_SPACE
    label_width = max(_text_width(label) for panel in panels for label in panel.labels or labels) + 12
    panel_width = label_width + _PANEL_WIDTH + _VALUE_SPACE + _GAP
    across = min(columns or len(panels), len(panels))
    lines = [panels[start : start + across] for start in range(0, len(panels), across)]
    heights = [max(len(panel.labels or labels) for panel in line) * row + _LINE_SPACE for line in lines]
    heading = max(_text_width(subtitle), _text_width(title, _TITLE))
    width = 2 * _MARGIN + max(heading, across * panel_width - _GAP)
    image = Image.new("RGB", (width, _MARGIN + _HEADING + sum(heights) - _LINE_SPACE + 50 + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=_font(_TITLE))
    draw.text((_MARGIN, _MARGIN + 42), subtitle, fill=_INK, font=_font(_TEXT))
    _draw_legend(draw, series, _MARGIN, _MARGIN + 80)
    top = _MARGIN + _HEADING
    for line, height in zip(lines, heights, strict=True):
        for number, panel in enumerate(line):
            left = _MARGIN + number * panel_width
            _draw_panel(draw, panel, panel.labels or labels, left, top, label_width, row)
        top += height
    image.save(path, "PNG", optimize=True)


def nice_step(largest: float, ticks: int = _TICKS) -> float:
    """A round distance (1, 2 or 5 times a power of ten) of which at most `ticks` cover `largest`."""
    if largest <= 0:
        return 1.0
    rough = largest / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _draw_legend(draw: ImageDraw.ImageDraw, series: Sequence[str], left: float, top: float) -> None:
    for colour, name in zip(_COLOURS, series, strict=False):
        draw.rectangle((left, top + 2, left + 20, top + 20), fill=colour)
        draw.text((left + 30, top), name, fill=_INK, font=_font(_TEXT))
        left += 30 + draw.textlength(name, font=_font(_TEXT)) + 40


def _draw_panel(
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    labels: Sequence[str],
    left: int,
    top: int,
    label_width: int,
    row: int,
) -> None:
    font = _font(_TEXT)
    draw.text((left, top - 36), panel.title, fill=_INK, font=font)
    zero, bottom = left + label_width, top + len(labels) * row
    largest = max(
        (value for values in panel.series.values() for value in values if value is not None), default=0.0
    )
    step = nice_step(largest)
    end = step * max(1, math.ceil(largest / step - 1e-9))
    for tick in range(round(end / step) + 1):
        x = zero + round(tick * step / end * _PANEL_WIDTH)
        draw.line((x, top, x, bottom), fill=_FAINT, width=1)
        draw.text((x, bottom + 8), f"{tick * step:g}", fill=_INK, font=font, anchor="ma")
    for index, label in enumerate(labels):
        y = top + index * row + _ROW_SPACE // 2
        bars = len(panel.series) * _BAR
        draw.text((zero - 12, y + bars / 2), label, fill=_INK, font=font, anchor="rm")
        for colour, values in zip(_COLOURS, panel.series.values(), strict=False):
            value = values[index]
            if value is not None:
                x = zero + round(value / end * _PANEL_WIDTH)
                draw.rectangle((zero, y, x, y + _BAR - 2), fill=colour)
                small = _font(_BAR)
                draw.text(
                    (x + 6, y + _BAR / 2 - 1), panel.form.format(value), fill=_INK, font=small, anchor="lm"
                )
            y += _BAR
    draw.line((zero, top, zero, bottom), fill=_INK, width=2)


def _text_width(text: str, size: int = _TEXT) -> int:
    return int(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(text, font=_font(size)))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that a chart looks the same everywhere."""
    return ImageFont.load_default(size)
