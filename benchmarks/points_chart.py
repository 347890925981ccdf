"""A chart of points by series: a linear axis across, a logarithmic one up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1800, 1240
LEFT, TOP, RIGHT, BOTTOM = 170, 130, 1760, 1110
TEXT, TITLE, RADIUS = 34, 42, 11
INK, FAINT = "#222222", "#d9d9d9"
COLOURS = ("#a0559a", "#e08a2e", "#2f6db5", "#5a9e5a", "#e08a2e", "#2f6db5")
JOINED = 4
"""Series whose points are joined by lines; the others are rings."""


def draw_points(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    labels: Iterable[tuple[float, float, str]],
) -> None:
    """Points (x, y) on a linear and a logarithmic axis; labels stand right above their places."""
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    points = [point for found in series.values() for point in found]
    place = _draw_axes(draw, [x for x, _ in points], [y for _, y in points])
    for number, (colour, found) in enumerate(zip(COLOURS, series.values(), strict=True)):
        places = [place(*point) for point in found]
        if number < JOINED:
            draw.line(places, fill=colour, width=4)
        for centre in places:
            _draw_mark(draw, centre, colour, ring=number >= JOINED)
    for x, y, label in labels:
        across, down = place(x, y)
        draw.text((across, down - 2 * RADIUS), label, fill=INK, font=_font(TEXT - 6), anchor="ms")
    _draw_legend(draw, list(series))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", optimize=True)


def _draw_axes(
    draw: ImageDraw.ImageDraw, xs: Sequence[float], ys: Sequence[float]
) -> Callable[[float, float], tuple[float, float]]:
    """Draw them around these values; returns where a point lies."""
    first, last = math.floor(4 * min(xs) - 0.2) / 4, math.ceil(4 * max(xs) + 0.2) / 4
    low, high = math.log10(min(ys) / 1.3), math.log10(max(ys) * 1.3)

    def place(x: float, y: float) -> tuple[float, float]:
        down = (high - math.log10(y)) / (high - low)
        return LEFT + (x - first) / (last - first) * (RIGHT - LEFT), TOP + down * (BOTTOM - TOP)

    draw.text((LEFT, 30), "Mean KL divergence from the exact model, nats", fill=INK, font=_font(TITLE))
    for tick in np.arange(math.ceil(2 * first) / 2, last + 1e-9, 0.5):
        x, _ = place(float(tick), ys[0])
        draw.line((x, TOP, x, BOTTOM), fill=FAINT, width=2)
        draw.text((x, BOTTOM + 12), f"{tick:g}", fill=INK, font=_font(TEXT), anchor="ma")
    for power in range(math.floor(low), math.ceil(high)):
        for value in (factor * 10.0**power for factor in (1, 2, 5)):
            if low <= math.log10(value) <= high:
                _, y = place(first, value)
                draw.line((LEFT, y, RIGHT, y), fill=FAINT, width=2)
                draw.text((LEFT - 14, y), f"{value:g}", fill=INK, font=_font(TEXT), anchor="rm")
    draw.line((LEFT, TOP, LEFT, BOTTOM, RIGHT, BOTTOM), fill=INK, width=3)
    middle = (LEFT + RIGHT) / 2
    draw.text((middle, HEIGHT - 24), "bits per weight", fill=INK, font=_font(TEXT), anchor="ms")
    return place


def _draw_legend(draw: ImageDraw.ImageDraw, names: Sequence[str]) -> None:
    left = RIGHT - 60 - max(draw.textlength(name, font=_font(TEXT)) for name in names)
    draw.rectangle((left - 40, TOP + 14, RIGHT - 10, TOP + 30 + 50 * len(names)), fill="white", outline=FAINT)
    for number, (colour, name) in enumerate(zip(COLOURS, names, strict=True)):
        y = TOP + 48 + 50 * number
        if number < JOINED:
            draw.line((left - 25, y, left + 25, y), fill=colour, width=4)
        _draw_mark(draw, (left, y), colour, ring=number >= JOINED)
        draw.text((left + 40, y), name, fill=INK, font=_font(TEXT), anchor="lm")


def _draw_mark(draw: ImageDraw.ImageDraw, centre: tuple[float, float], colour: str, *, ring: bool) -> None:
    radius = RADIUS + 3 * ring
    box = (centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius)
    draw.ellipse(box, fill=None if ring else colour, outline=colour, width=4)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
