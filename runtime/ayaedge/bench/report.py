"""A benchmark for people and programs: figures beside those of other programs, a table, JSON, a bar chart.

Works on what was measured alone; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from ayaedge.bench.benchmark import Measured, OtherProgram
from ayaedge.bench.process_watch import Resident
from ayaedge.charts import Panel, draw_bars

Unit = Literal["s", "ms", "tokens/s", "GB"]

LLAMA = "llama.cpp"
_FORMS: dict[Unit, str] = {"s": "{:.2f}", "ms": "{:,.1f}", "tokens/s": "{:,.2f}", "GB": "{:.2f}"}
_MEASURED, _ALLOWED = "measured", "what this machine's limits allow"


@dataclass(frozen=True)
class Figure:
    """One thing that was measured."""

    name: str
    value: float
    unit: Unit
    limit_share: float | None = None
    """Of what the machine's measured limits allow."""
    cold_share: float | None = None
    """Of the time to the first token when nothing is known."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """The same of other programs, by their names."""


def list_figures(measured: Measured, others: Sequence[OtherProgram] = ()) -> list[Figure]:
    """All figures, in the order of a question's way."""
    return [
        *_load_figures(measured),
        *_speed_figures(measured, others),
        *_first_token_figures(measured, others),
        *_memory_figures(measured, others),
    ]


def to_dict(measured: Measured, others: Sequence[OtherProgram] = ()) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "figures": [asdict(figure) for figure in list_figures(measured, others)],
        "measured": measured.to_dict(),
        "others": [asdict(other) for other in others],
    }


def benchmark_table(measured: Measured, others: Sequence[OtherProgram] = ()) -> Table:
    """The figures for a terminal, a column for each program; in brackets how many times the other's figure ours is."""
    figures = list_figures(measured, others)
    names = [LLAMA, *(other.name for other in others if other.was_measured)]
    table = Table(measured.bundle)
    for title in ("ayaedge", "of the limit", *names):
        table.add_column(title, justify="right")
    for figure in figures:
        share = "" if figure.limit_share is None else f"{figure.limit_share:.0%}"
        beside = [_beside(figure, name) for name in names]
        table.add_row(figure.name, _value(figure), share, *beside)
    return table


def notes(measured: Measured, others: Sequence[OtherProgram] = ()) -> list[str]:
    """What a reader of the table must know, a sentence each."""
    computer, limits = measured.computer, measured.limits
    peaks = [f"{limits.float32_peak / 1e9:,.0f} GFLOP/s in float32"]
    if limits.int8_peak:
        peaks.append(f"{limits.int8_peak / 1e9:,.0f} GOP/s in int8")
    found = [
        f"{computer.processor}, {computer.threads} threads, {computer.memory_bytes / 1e9:.1f} GB of memory.",
        f"Measured limits: {limits.read_bandwidth / 1e9:.1f} GB/s read, {', '.join(peaks)}.",
        "Cold, restored: from the start of a process. In brackets: ours divided by the other's.",
    ]
    kernel = f"our kernel {measured.acceleration}" if measured.acceleration != "off" else "no kernel of ours"
    found.append(f"Prefill: with {kernel}, beside {LLAMA} as it is installed.")
    for other in others:
        if other.fault is not None:
            found.append(f"{other.name} could not be measured: {other.fault}")
        elif not other.was_measured:
            found.append(
                f"{other.name} was not measured: it needs {other.needed_bytes / 1e9:.1f} GB of memory and "
                f"{other.available_bytes / 1e9:.1f} GB are free."
            )
    if any(other.was_measured for other in others):
        found.append("transformers' first token: with the model loaded, which ours has still to do.")
    return found


def draw_benchmark(path: Path, measured: Measured, others: Sequence[OtherProgram] = ()) -> None:
    """Write a PNG bar chart: speeds and times beside the machine's limits and other programs."""
    measurable = [other for other in others if other.was_measured]
    computer = measured.computer
    draw_bars(
        path,
        title=f"{measured.bundle} on {computer.processor}, {computer.threads} threads",
        subtitle="seconds and memory: shorter bars are better; tokens/s and shares: longer bars are better",
        labels=[],
        panels=[
            *_speed_panels(measured, measurable),
            _first_token_panel(measured, measurable),
            _memory_panel(measured, measurable),
            _share_panel(list_figures(measured)),
        ],
        columns=2,
    )


def _load_figures(measured: Measured) -> Iterator[Figure]:
    yield Figure("load, the first time here", measured.first_load_seconds, "s")
    yield Figure("load", measured.load_seconds, "s")
    yield Figure("load, vision alone", measured.vision_load_seconds, "s")
    yield Figure("load, decoder alone", measured.decoder_load_seconds, "s")


def _speed_figures(measured: Measured, others: Sequence[OtherProgram]) -> Iterator[Figure]:
    tile_share = measured.tile_limit / measured.tile_seconds
    tiles = _others(others, lambda other: other.tile_seconds, factor=1e3)
    yield Figure("vision, a tile", measured.tile_seconds * 1e3, "ms", tile_share, beside=tiles)
    for part in measured.prefill:
        beside = {LLAMA: part.raw}
        if part.kind == "text":
            beside |= _others(others, lambda other: other.prefill)
        name = f"prefill, {part.kind}, {part.tokens:,} tokens"
        yield Figure(name, part.ours, "tokens/s", part.ours / part.limit, beside=beside)
    for number, answer in enumerate(measured.decode):
        rates = _others(others, partial(_decode_rate, number))
        name, share = f"decode behind {answer.context:,} tokens", answer.ours / answer.limit
        yield Figure(name, answer.ours, "tokens/s", share, beside={LLAMA: answer.raw, **rates})


def _first_token_figures(measured: Measured, others: Sequence[OtherProgram]) -> Iterator[Figure]:
    times = measured.first_token
    name = f"first token, cold ({times.tiles} tiles, {times.prompt_tokens:,} tokens)"
    beside = _others(others, lambda other: other.first_token_seconds)
    yield Figure(name, times.cold, "s", times.limit / times.cold, beside=beside)
    yield Figure("first token, cold, states kept", times.filling, "s", cold_share=times.filling / times.cold)
    yield Figure("first token, restored", times.restored, "s", cold_share=times.restored / times.cold)
    yield Figure("first token, warm", times.warm, "s", cold_share=times.warm / times.cold)


def _memory_figures(measured: Measured, others: Sequence[OtherProgram]) -> Iterator[Figure]:
    totals = _others(others, lambda other: None if other.memory is None else other.memory.total, factor=1e-9)
    parts = {
        "memory": (measured.memory, totals),
        "memory, vision alone": (measured.vision_memory, {}),
        "memory, decoder alone": (measured.decoder_memory, {}),
    }
    for name, (found, beside) in parts.items():
        yield Figure(name, found.total / 1e9, "GB", beside=beside)
        if found.anonymous is not None:
            yield Figure(f"{name}, anonymous", found.anonymous / 1e9, "GB")
    yield Figure("states on disk for the image", measured.first_token.stored_bytes / 1e9, "GB")


def _others(
    others: Sequence[OtherProgram], take: Callable[[OtherProgram], float | None], *, factor: float = 1.0
) -> dict[str, float]:
    found = {other.name: take(other) for other in others}
    return {name: value * factor for name, value in found.items() if value is not None}


def _decode_rate(number: int, other: OtherProgram) -> float | None:
    """Its rate at the context that is nearest to ours: both have a short one and a long one."""
    return other.decode[min(number, len(other.decode) - 1)].tokens_per_second if other.decode else None


def _value(figure: Figure) -> str:
    text = f"{_FORMS[figure.unit].format(figure.value)} {figure.unit}"
    return text if figure.cold_share is None else f"{text} ({figure.cold_share:.1%} of cold)"


def _beside(figure: Figure, name: str) -> str:
    if name not in figure.beside:
        return ""
    value = figure.beside[name]
    return f"{_FORMS[figure.unit].format(value)} ({figure.value / value:.2f} ×)"


def _speed_panels(measured: Measured, others: Sequence[OtherProgram]) -> Iterator[Panel]:
    names = [other.name for other in others]
    tiles = [measured.tile_seconds, *(other.tile_seconds for other in others)]
    yield _panel("Vision, seconds for a tile", ["ayaedge", *names], tiles, [measured.tile_limit])
    text = next(part for part in measured.prefill if part.kind == "text")
    programs = ["ayaedge", LLAMA, *names]
    rates = [text.ours, text.raw, *(other.prefill for other in others)]
    yield _panel(f"Prefill of {text.tokens:,} tokens, tokens/s", programs, rates, [text.limit])
    for number, answer in enumerate(measured.decode):
        rates = [answer.ours, answer.raw, *(_decode_rate(number, other) for other in others)]
        yield _panel(f"Decoding behind {answer.context:,} tokens, tokens/s", programs, rates, [answer.limit])


def _first_token_panel(measured: Measured, others: Sequence[OtherProgram]) -> Panel:
    times = measured.first_token
    labels = ["cold", "restored", "warm", *(f"{other.name}, loaded" for other in others)]
    values = [times.cold, times.restored, times.warm, *(other.first_token_seconds for other in others)]
    return _panel(f"Seconds to the first token, {times.tiles} tiles", labels, values, [times.limit])


def _memory_panel(measured: Measured, others: Sequence[OtherProgram]) -> Panel:
    def gigabytes(found: Resident | None) -> float | None:
        return None if found is None else found.total / 1e9

    labels = ["ayaedge", "vision tower alone", "decoder alone", *(other.name for other in others)]
    parts = (
        measured.memory,
        measured.vision_memory,
        measured.decoder_memory,
        *(other.memory for other in others),
    )
    return _panel("Peak of resident memory, GB", labels, [gigabytes(part) for part in parts])


def _share_panel(figures: Sequence[Figure]) -> Panel:
    shares = {figure.name: 100 * figure.limit_share for figure in figures if figure.limit_share is not None}
    return _panel("Share of what the limits allow, %", list(shares), list(shares.values()), form="{:.0f}")


def _panel(
    title: str,
    labels: Sequence[str],
    values: Sequence[float | None],
    limits: Sequence[float | None] = (),
    form: str = "{:.3g}",
) -> Panel:
    """A panel of two series; there is no limit for the last labels."""
    allowed = [*limits, *[None] * (len(labels) - len(limits))]
    return Panel(title, {_MEASURED: values, _ALLOWED: allowed}, form, labels)
