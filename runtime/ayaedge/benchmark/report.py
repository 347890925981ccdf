"""A benchmark for people and programs: tables, JSON, and a chart by language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from ayaedge.benchmark.outcomes import Figures, Scores
from ayaedge.charts import Panel, draw_bars
from ayaedge.errors import InvalidOptionError

MOST_IN_CHART = 4
"""Models that a chart tells apart."""


@dataclass(frozen=True)
class Result:
    """What a benchmark found."""

    benchmark: str
    settings: Mapping[str, object]
    """How it was asked and compared."""
    models: Mapping[str, Scores]
    """In the order in which they were named."""
    against: str | None = None

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        models = [{"name": name, **scores.to_dict()} for name, scores in self.models.items()]
        return {
            "benchmark": self.benchmark, "settings": dict(self.settings), "against": self.against, "models": models
        }  # fmt: skip


@dataclass(frozen=True)
class _Column:
    figure: str
    heading: str
    form: str
    factor: float = 1


_COLUMNS = (
    _Column("questions", "questions", "{:.0f}"),
    _Column("failed", "failed", "{:.0f}"),
    _Column("cut_off", "cut\noff %", "{:.1f}", 100),
    _Column("right", "right %", "{:.1f}", 100),
    _Column("no_choice", "no\nchoice %", "{:.1f}", 100),
    _Column("reference_chrf", "reference\nchrF", "{:.1f}"),
    _Column("reference_equal", "reference\nequal %", "{:.1f}", 100),
    _Column("equal", "equal\n%", "{:.1f}", 100),
    _Column("equal_beginning_share", "equal be-\nginning %", "{:.1f}", 100),
    _Column("chrf", "chrF", "{:.1f}"),
    _Column("language_kept", "language\nkept %", "{:.1f}", 100),
    _Column("kl", "KL", "{:.4f}"),
    _Column("top1", "same\ntop %", "{:.1f}", 100),
    _Column("win", "win %", "{:.1f}", 100),
    _Column("tie", "tie\n%", "{:.1f}", 100),
    _Column("loss", "loss\n%", "{:.1f}", 100),
)
_RARE = ("failed", "cut_off", "no_choice")
"""Figures that are shown where there is something to show."""
_BOUNDS = ("right", "win")
"""Figures that are shown with their interval."""
_PANELS = (
    ("right", "Right answers, %", 100.0, "{:.0f}"),
    ("reference_chrf", "chrF to the reference", 1.0, "{:.1f}"),
    ("equal", "Answers that are equal, %", 100.0, "{:.0f}"),
    ("chrf", "chrF to the other model's answers", 1.0, "{:.1f}"),
    ("kl", "KL divergence on its answers, nats", 1.0, "{:.2g}"),
    ("win", "Wins, %", 100.0, "{:.0f}"),
)


def tables(result: Result) -> list[Table]:
    """A table for each model, by language and by task; with several models, first one that compares them."""
    found = []
    if len(result.models) > 1:
        totals = {name: scores.all for name, scores in result.models.items()}
        found.append(_table(result.benchmark, "model", {"": totals}))
    for name, scores in result.models.items():
        totals = {"all": scores.all, "mean": scores.mean}
        found.append(_table(name, "language", {"": scores.languages, " ": totals}))
        if len(scores.tasks) > 1:
            found.append(_table(name, "task", {"": scores.tasks}))
    return found


def _table(title: str, what: str, sections: Mapping[str, Mapping[str, Figures]]) -> Table:
    rows = [figures for section in sections.values() for figures in section.values()]
    columns = [column for column in _COLUMNS if any(_is_shown(column, figures) for figures in rows)]
    table = Table(what, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column.heading, justify="right")
    for section in sections.values():
        table.add_section()
        for name, figures in section.items():
            table.add_row(name, *(_cell(column, figures) for column in columns))
    return table


def _is_shown(column: _Column, figures: Figures) -> bool:
    return column.figure in figures and (column.figure not in _RARE or figures[column.figure] > 0)


def _cell(column: _Column, figures: Figures) -> str:
    if column.figure not in figures:
        return ""
    value = column.form.format(column.factor * figures[column.figure])
    if column.figure not in _BOUNDS:
        return value
    low, high = figures[f"{column.figure}_low"], figures[f"{column.figure}_high"]
    return f"{value} [{100 * low:.0f}, {100 * high:.0f}]"


def check_chart(models: int, scored: bool) -> None:
    """InvalidOptionError for more models than a chart tells apart, and where answers are not scored."""
    if not scored:
        raise InvalidOptionError(
            "there is nothing to draw: this data set has no right answers, and none are compared"
        )
    if models > MOST_IN_CHART:
        raise InvalidOptionError(f"a chart shows at most {MOST_IN_CHART} models, not {models}")


def draw(path: Path, result: Result) -> None:
    """Write a PNG bar chart of what was measured, by language."""
    labels = list(dict.fromkeys(name for scores in result.models.values() for name in scores.languages))
    panels = [
        Panel(title, _series(result, labels, figure, factor), form)
        for figure, title, factor, form in _PANELS
        if any(figure in scores.all for scores in result.models.values())
    ]
    against = f", against {result.against}" if result.against else ""
    questions = max(int(scores.all["questions"]) for scores in result.models.values())
    draw_bars(
        path, title=f"{result.benchmark}: {', '.join(result.models)}", subtitle=f"{questions} questions{against}",
        labels=labels, panels=panels, columns=2,
    )  # fmt: skip


def _series(
    result: Result, labels: Sequence[str], figure: str, factor: float
) -> dict[str, list[float | None]]:
    def value(figures: Figures) -> float | None:
        return factor * figures[figure] if figure in figures else None

    return {
        name: [value(scores.languages.get(label, {})) for label in labels]
        for name, scores in result.models.items()
    }
