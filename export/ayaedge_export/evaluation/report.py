"""An evaluation for people: a table for the terminal, a chart, and the totals in a bundle's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from ayaedge.bundle import Bundle
from ayaedge.charts import Panel, draw_bars
from ayaedge_export.evaluation.evaluate import Evaluation, Fidelity
from ayaedge_export.resume.staged_bundle import write_manifest


def evaluation_table(evaluation: Evaluation) -> Table:
    """The evaluation for a terminal: a row for each language, the total last."""
    table = Table("language")
    sides = ["text"] + ["after an image"] * (evaluation.after_image is not None)
    for side in sides:
        for label in ("positions", "mean KL", "p99 KL", "same top"):
            table.add_column(f"{side}\n{label}", justify="right")
    for language in evaluation.languages:
        parts = [evaluation.languages[language], evaluation.languages_after_image.get(language)]
        table.add_row(language, *_cells(parts[: len(sides)]))
    table.add_section()
    table.add_row("all", *_cells([evaluation.overall, evaluation.after_image][: len(sides)]), style="bold")
    return table


def draw_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write a PNG bar chart: each language's mean KL divergence and share of other likeliest tokens."""
    sides = {"text": evaluation.languages}
    if evaluation.languages_after_image:
        sides["after an image"] = evaluation.languages_after_image
    order = sorted(evaluation.languages, key=lambda language: -evaluation.languages[language].mean_kl)
    divergences = {
        side: [_value(figures.get(language), "mean_kl") for language in order]
        for side, figures in sides.items()
    }
    others = {
        side: [_other_tokens(figures.get(language)) for language in order] for side, figures in sides.items()
    }
    draw_bars(
        path,
        title=f"{evaluation.bundle} against {evaluation.against}",
        subtitle=f"{evaluation.overall.positions} positions of {evaluation.text} text, "
        f"mean KL divergence {evaluation.overall.mean_kl:.4f} nats, "
        f"same likeliest token {evaluation.overall.top1:.1%}; shorter bars are better",
        labels=order,
        panels=[
            Panel("Mean KL divergence of the next token, nats", divergences, "{:.2g}"),
            Panel("Positions with another likeliest token, %", others, "{:.1f}"),
        ],
    )


def record_figures(bundle: Bundle, evaluation: Evaluation) -> None:
    """Write the totals into the bundle's manifest, next to the figures of its verification."""
    parity = {**bundle.manifest.parity, **evaluation.figures()}
    write_manifest(bundle.directory, replace(bundle.manifest, parity=parity))


def _cells(parts: Sequence[Fidelity | None]) -> list[str]:
    cells = []
    for part in parts:
        if part is None:
            cells += [""] * 4
        else:
            cells += [str(part.positions), f"{part.mean_kl:.4f}", f"{part.p99_kl:.3f}", f"{part.top1:.1%}"]
    return cells


def _value(part: Fidelity | None, name: str) -> float | None:
    return None if part is None else float(getattr(part, name))


def _other_tokens(part: Fidelity | None) -> float | None:
    return None if part is None else 100 * (1 - part.top1)
