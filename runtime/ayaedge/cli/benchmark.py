"""The command that runs the seed's benchmarks from a local copy of their data."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer

from ayaedge.batch.journal import BatchRow
from ayaedge.benchmark.answering import Answered, Answering, Asking, answer_all
from ayaedge.benchmark.choices import Style
from ayaedge.benchmark.data_set import Benchmark, DataSet
from ayaedge.benchmark.endpoint import KEY_VARIABLE, JudgeEndpoint
from ayaedge.benchmark.judging import judge_all
from ayaedge.benchmark.languages import require_identifier
from ayaedge.benchmark.outcomes import Divergence, Verdict, outcome_of, score
from ayaedge.benchmark.report import Result, check_chart, draw, tables
from ayaedge.benchmark.similarity import chrf_signature
from ayaedge.bundle import MANIFEST, demo_bundle, read_bundle
from ayaedge.cli.console import (
    JsonFlag,
    announce,
    count_progress,
    print_error,
    print_table,
    show_messages,
    stderr,
    write_json,
)
from ayaedge.cli.export import require_exporter
from ayaedge.cli.options import LoadingFlags, takes_flags
from ayaedge.errors import InvalidOptionError
from ayaedge.files import replacing

_WHAT, _COMPARED, _JUDGED, _TO = "What is asked", "What it is compared with", "Judging", "What is written"
_ROOM = 64
"""Tokens beyond those that were counted: an answer may be written in others."""


@dataclass(frozen=True)
class DataFlags:
    """Which questions, and how they are asked."""

    languages: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=_WHAT, help="de,jpn_Jpan: only these; repeatable. [default: all]"),
    ] = None
    limit: Annotated[
        int | None, typer.Option(rich_help_panel=_WHAT, help="Most questions of each language.")
    ] = None
    options: Annotated[
        Style,
        typer.Option(
            rich_help_panel=_WHAT,
            help="Multiple choice: show options and ask for a letter, or ask for the text of the right one.",
        ),
    ] = "letters"
    max_tokens: Annotated[
        int, typer.Option("-n", "--max-tokens", rich_help_panel=_WHAT, help="Most tokens of an answer.")
    ] = 512
    max_tiles: Annotated[int | None, typer.Option(rich_help_panel=_WHAT, help="Most tiles of a picture.")] = (
        None
    )

    def open(self, name: Benchmark, directory: Path) -> DataSet:
        """The questions of a copy of the data."""
        wanted = [one.strip() for given in self.languages or () for one in given.split(",") if one.strip()]
        return DataSet(name, directory, languages=wanted, limit=self.limit)

    def asking(self) -> Asking:
        """How each is asked."""
        limits = {"max_tokens": self.max_tokens, "max_tiles": self.max_tiles}
        return Asking(self.options, {name: value for name, value in limits.items() if value is not None})


@dataclass(frozen=True)
class ComparisonFlags:
    """What answers are compared with."""

    against: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE|CHECKPOINT",
            rich_help_panel=_COMPARED,
            help="The model in full precision: a bundle, or a checkpoint in transformers (extra: reference).",
        ),
    ] = None
    kl: Annotated[
        bool,
        typer.Option(
            rich_help_panel=_COMPARED, help="Measure the KL divergence on its answers (extra: export)."
        ),
    ] = True
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="URL", rich_help_panel=_JUDGED, help="An OpenAI-compatible endpoint that judges pairs of answers: "
            f"pictures and answers are sent there. Its key: {KEY_VARIABLE}.",
        ),
    ] = None  # fmt: skip
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=_JUDGED, help="The model that judges.")
    ] = None

    def endpoint(self) -> JudgeEndpoint | None:
        """The judge, if one was named; InvalidOptionError for half of one."""
        if self.judge is None and self.judge_model is None:
            return None
        if self.judge is None or self.judge_model is None or self.against is None:
            raise InvalidOptionError(
                "a judge needs --judge, --judge-model and --against, which gives it pairs of answers"
            )
        return JudgeEndpoint(self.judge, self.judge_model, os.environ.get(KEY_VARIABLE) or None)


@takes_flags
def benchmark(
    name: Annotated[Benchmark, typer.Argument(metavar="BENCHMARK", help=", ".join(get_args(Benchmark)))],
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", rich_help_panel=_WHAT, help="A copy of the data set: its Parquet files."),
    ],
    model: Annotated[
        list[Path] | None,
        typer.Option("-m", "--model", help="Bundle directory; repeatable. Without it the demonstration model."),
    ] = None,
    *,
    source: DataFlags,
    comparison: ComparisonFlags,
    loading: LoadingFlags,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", rich_help_panel=_TO,
            help="The figures as JSON; answers lie next to it, and the same command goes on from them. "
            "[default: BENCHMARK.json]",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", rich_help_panel=_TO, help="A chart by language.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:  # fmt: skip
    """Ask a benchmark's questions from a local copy of its data, and score the answers.

    Goes on where it stopped. Exit code 1 if a question failed: the next run asks it again.
    """
    show_messages(logging.WARNING)
    models = _named(model or [demo_bundle()])
    judge = comparison.endpoint()
    questions = source.open(name, data)
    _check(questions, comparison, models, plot, source.max_tiles)
    if judge:
        _tell_where_it_goes(judge)
    run = _Run(questions, source, comparison, loading, judge, output or Path(f"{name}.json"))
    result = run.result(models)
    with replacing(run.output, private=False) as stream:
        stream.write((json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())
    if plot:
        draw(plot, result)
    if as_json:
        write_json(result.to_dict(), indent=2)
    else:
        for table in tables(result):
            print_table(table)
    announce("written:", f"{run.output}, and answers in {run.journal}")
    if run.failed:
        raise typer.Exit(1)


def _named(paths: list[Path]) -> dict[str, Path]:
    """Bundles by what they are called in tables: their directories' names, or all of their paths if these are equal."""
    if twice := {str(path) for path in paths if paths.count(path) > 1}:
        raise InvalidOptionError(f"-m names {', '.join(sorted(twice))} more than once")
    names = [path.absolute().name for path in paths]
    unique = len(set(names)) == len(names)
    return dict(zip(names if unique else map(str, paths), paths, strict=True))


def _check(
    data: DataSet,
    comparison: ComparisonFlags,
    models: Mapping[str, Path],
    plot: Path | None,
    most_tiles: int | None,
) -> None:
    """What would fail after hours fails now."""
    for path in models.values():
        read_bundle(path)
    compared = comparison.against is not None
    if plot:
        check_chart(len(models), data.has_options or data.has_references or compared)
    if compared or data.has_references:
        chrf_signature()
    if comparison.against is None:
        return
    require_identifier()
    if comparison.kl or not _is_bundle(comparison.against):
        require_exporter("ayaedge benchmark --against")
    if most_tiles is not None and not _is_bundle(comparison.against):
        raise InvalidOptionError(
            "a checkpoint in transformers takes all tiles of a picture: --max-tiles is for bundles"
        )


def _is_bundle(path: Path) -> bool:
    return (path / MANIFEST).is_file() or not (path / "config.json").is_file()


def _tell_where_it_goes(judge: JudgeEndpoint) -> None:
    if judge.is_local:
        stderr.print(f"The judge at {judge.host} is on this machine: pictures and answers stay on it.")
    else:
        stderr.print(
            f"The judge is at {judge.host}: the pictures, questions and both answers of each pair leave this machine "
            "and are sent there.", style="bold yellow",
        )  # fmt: skip


class _Run:
    """One run of a benchmark, with what all its steps share."""

    def __init__(
        self, data: DataSet, source: DataFlags, comparison: ComparisonFlags, loading: LoadingFlags,
        judge: JudgeEndpoint | None, output: Path,
    ) -> None:  # fmt: skip
        self._data, self._comparison, self._loading, self._judge = data, comparison, loading, judge
        self._source, self._asking = source, source.asking()
        self.output = output
        self.journal = output.with_name(f"{output.stem}.answers.jsonl")
        self.failed = 0

    def result(self, models: Mapping[str, Path]) -> Result:
        """The figures of all models."""
        answered = {name: self._answers(name, self._load(path)) for name, path in models.items()}
        against = self._against() if self._comparison.against else None
        scores = {}
        for name, path in models.items():
            divergences = self._divergences(name, path, against) if against and self._comparison.kl else {}
            verdicts = self._verdicts(name, answered[name], against) if against and self._judge else None
            outcomes = [
                outcome_of(
                    question, answered[name].answer(question.key), self._asking.style,
                    cut_off=answered[name].is_cut_off(question.key),
                    against=against.answer(question.key) if against else None,
                    divergence=divergences.get(question.key), verdicts=verdicts,
                )
                for question in answered[name].questions
            ]  # fmt: skip
            scores[name] = score(outcomes)
        other = self._comparison.against
        return Result(self._data.name, self._settings(), scores, other.absolute().name if other else None)

    def _settings(self) -> dict[str, object]:
        source, judge = self._source, self._judge
        return {
            "languages": source.languages, "limit": source.limit, "max_tokens": source.max_tokens,
            "max_tiles": source.max_tiles, "options": source.options if self._data.has_options else None,
            "chrf": chrf_signature() if self._comparison.against or self._data.has_references else None,
            "judge": {"url": judge.url, "model": judge.model} if judge else None,
        }  # fmt: skip

    def _load(self, path: Path) -> AbstractContextManager[Answering]:
        return self._loading.load(path, verbose=False)

    def _against(self) -> Answered:
        path = self._comparison.against
        assert path is not None
        if _is_bundle(path):
            return self._answers(path.absolute().name, self._load(path))
        from ayaedge_export import open_checkpoint
        from ayaedge_export.evaluation.checkpoint_model import CheckpointModel

        return self._answers(path.absolute().name, CheckpointModel(open_checkpoint(path)))

    def _answers(self, name: str, loaded: AbstractContextManager[Answering]) -> Answered:
        with loaded as model, self._progress(name, self._data.count) as on_row:
            return answer_all(model, self._data, self._asking, self.journal, on_row)

    def _verdicts(self, name: str, ours: Answered, theirs: Answered) -> dict[str, Verdict | None]:
        assert self._judge is not None
        with self._progress(f"judging {name}", 2 * self._data.count) as on_row:
            return judge_all(self._judge, self._data, ours, theirs, self.journal, on_row)

    def _divergences(self, name: str, path: Path, theirs: Answered) -> dict[str, Divergence]:
        from ayaedge_export.evaluation.answers import WrittenAnswer, compare_answers
        from ayaedge_export.evaluation.evaluate import open_reference

        assert self._comparison.against is not None
        written = (
            WrittenAnswer(
                one.key, one.language, self._asking.text(one), answer, one.images, self._asking.system(one)
            )
            for one in self._data.questions()
            if (answer := theirs.answer(one.key)) is not None
        )
        with count_progress(f"comparing {name}") as advance:
            found = compare_answers(
                read_bundle(path), open_reference(self._comparison.against), written,
                context=theirs.longest + _ROOM, max_tiles=self._source.max_tiles,
                journal=self.output.with_name(f"{self.output.stem}.kl.jsonl"), threads=self._loading.threads,
                advance=lambda done: advance(done, len(theirs.rows)),
            )  # fmt: skip
        return {
            key: Divergence(len(one.kl), float(one.kl.mean()), float(one.same_top.mean()))
            for key, one in found.items()
        }

    @contextmanager
    def _progress(self, what: str, total: int) -> Iterator[Callable[[int, BatchRow], None]]:
        with count_progress(what) as advance:
            yield partial(self._on_row, advance, total)

    def _on_row(self, advance: Callable[..., None], total: int, number: int, row: BatchRow) -> None:
        advance(number, total)
        if row.error is not None:
            self.failed += 1
            print_error(f"{row.custom_id}: {row.error}")
