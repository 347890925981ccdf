"""The command that asks one question about many images, and goes on where it stopped."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ayaedge.batch.items import BatchItem, find_items, listed
from ayaedge.batch.journal import BatchRow
from ayaedge.batch.outputs import (
    Existing,
    require_parquet,
    sidecar,
    write_csv,
    write_openai,
    write_parquet,
    write_sidecar,
)
from ayaedge.batch.runner import BatchOptions
from ayaedge.bundle import demo_bundle, read_bundle
from ayaedge.cli.batch_rows import AheadOption, Asked, BatchCommand, ParallelOption, RayOption
from ayaedge.cli.console import announce, count_progress, print_error, show_messages, stderr, write_line
from ayaedge.cli.options import (
    JsonSchemaOption,
    LoadingFlags,
    ModelOption,
    SamplingFlags,
    StopOption,
    TileFlags,
    schema_of,
    takes_flags,
)
from ayaedge.errors import AyaEdgeError, InvalidOptionError
from ayaedge.images.load import image_size
from ayaedge.images.pdf import PdfReader
from ayaedge.images.tile_budget import TileChoice, image_cost
from ayaedge.manifest import Manifest
from ayaedge.planning.costs import QuestionCost
from ayaedge.planning.question_plan import plan_question
from ayaedge.vision.session import VisionOptions

_FROM, _TO, _FAILING = "What is read", "What is written", "What fails"
_RECENT = 20
"""Rows from which the rate is told: those that were known came at once."""
_ASSUMED_TOKENS = 64
"""Of an answer without a limit, for saying how long all will take."""


@dataclass(frozen=True)
class InputFlags:
    """Where items come from."""

    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", rich_help_panel=_FROM, help="Folders within folders too.")
    ] = False
    list_file: Annotated[
        list[Path] | None,
        typer.Option("--list", rich_help_panel=_FROM, metavar="FILE", help="Inputs, a line each; repeatable."),
    ] = None  # fmt: skip
    media_path: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", rich_help_panel=_FROM, help="Whose images OpenAI's requests may name; repeatable."
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class OutputFlags:
    """What is made of the rows."""

    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", rich_help_panel=_TO, help="All rows, only ever appended to: a batch goes on from it."
        ),
    ] = Path("batch.jsonl")  # fmt: skip
    txt: Annotated[
        bool, typer.Option("--txt", rich_help_panel=_TO, help="Each answer next to its image, as .txt.")
    ] = False
    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=_TO, help="Each row next to its image, as .json.")
    ] = False
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=_TO, help="A table for spreadsheets.")
    ] = None
    parquet: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=_TO, help="A table as Parquet.")
    ] = None
    openai: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_TO, help="Results in OpenAI's form, of its requests."),
    ] = None
    existing: Annotated[
        Existing,
        typer.Option(
            rich_help_panel=_TO,
            help="Where a .txt or .json lies already: skip the image, or overwrite or append.",
        ),
    ] = "skip"

    @property
    def has_tables(self) -> bool:
        """Whether all rows are wanted at the end."""
        return any((self.csv, self.parquet, self.openai))

    @property
    def suffixes(self) -> list[str]:
        """Of files next to images."""
        return [".txt"] * self.txt + [".json"] * self.json


@dataclass(frozen=True)
class FailureFlags:
    """How it goes on when something fails."""

    retries: Annotated[
        int, typer.Option(rich_help_panel=_FAILING, help="Times that a row is tried again at once.")
    ] = 1
    max_error_rate: Annotated[
        float, typer.Option(rich_help_panel=_FAILING, help="Share of rows that may fail.")
    ] = 0.5
    redo: Annotated[
        bool, typer.Option("--redo", rich_help_panel=_FAILING, help="Compute known rows anew.")
    ] = False

    def options(self, parallel: int | None, ahead: bool | None) -> BatchOptions:
        """What they say, with how the work is done."""
        return BatchOptions(self.retries, self.max_error_rate, self.redo, parallel, ahead)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("batch", cls=BatchCommand)
@takes_flags
def batch(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="Folders, images, patterns, documents, or OpenAI's .jsonl of requests."),
    ] = None,
    prompt: Annotated[
        str,
        typer.Option("-p", "--prompt", help="Asked about each; {name} {stem} {directory} {page} are filled in."),
    ] = "Describe the image.",
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="Instruction before each.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option("-n", "--max-tokens", help="Most tokens of an answer.")
    ] = None,
    *,
    source: InputFlags,
    target: OutputFlags,
    failing: FailureFlags,
    sampling: SamplingFlags,
    tiles: TileFlags,
    loading: LoadingFlags,
    stop: StopOption = None,
    json_schema: JsonSchemaOption = None,
    ray: RayOption = None,
    parallel: ParallelOption = None,
    ahead: AheadOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say tiles, tokens and hours, and do nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the libraries' messages.")] = False,
) -> None:  # fmt: skip
    """Ask one question about many images: a row of JSON for each, and going on where it stopped.

    Exit code 1 if a row failed: the next run tries it again.
    """
    show_messages(logging.DEBUG if verbose else logging.WARNING)
    items = _items(inputs or [], source)
    if dry_run:
        _foretell(items, prompt, model, max_tokens, tiles, loading)
        return
    if target.parquet:
        require_parquet()
    items = [replace(item, skip=_is_there(item, target)) for item in items]
    options: dict[str, Any] = dict(
        max_tokens=max_tokens, stop=stop or (), response_format=schema_of(json_schema), **tiles.keywords(),
        **sampling.keywords(),
    )  # fmt: skip
    files, going_on = tuple(source.media_path or ()), failing.options(parallel, ahead)
    asked = Asked(items, prompt, system, files, options, target.output, going_on)
    with asked.rows(model, loading, ray, verbose=verbose) as rows:
        done = _followed(rows, items, target)
    if done.failed:
        raise typer.Exit(1)


def _items(inputs: list[str], source: InputFlags) -> list[BatchItem]:
    named = [*inputs, *(line for path in source.list_file or () for line in listed(path))]
    items = list(find_items(named, recursive=source.recursive))
    if not items:
        raise InvalidOptionError(
            "there is no image in what was named; folders within folders need --recursive"
        )
    return items


def _is_there(item: BatchItem, target: OutputFlags) -> bool:
    """Whether an item has its files next to it, and they are to stay."""
    if target.existing != "skip":
        return False
    beside = [path for suffix in target.suffixes if (path := sidecar(item, suffix)) is not None]
    return bool(beside) and all(path.exists() for path in beside)


class _Done:
    """What became of a batch, and how fast."""

    def __init__(self) -> None:
        self.answered = self.failed = self.skipped = 0
        self._moments: deque[float] = deque([time.monotonic()], maxlen=_RECENT)
        self.rows: dict[int, BatchRow] = {}

    def count(self, row: BatchRow) -> str:
        """Note a row; what to say of all so far."""
        if row.stop_reason == "skipped":
            self.skipped += 1
        elif row.error is not None:
            self.failed += 1
        else:
            self.answered += 1
        self._moments.append(time.monotonic())
        rate = 3600 * (len(self._moments) - 1) / max(self._moments[-1] - self._moments[0], 1e-9)
        return f"{rate:,.0f} an hour" + (f", {self.failed} failed" if self.failed else "")


def _followed(rows: Iterable[tuple[int, BatchRow]], items: list[BatchItem], target: OutputFlags) -> _Done:
    """What becomes of rows, each with the number of its item; tables have them in the order of the items."""
    done = _Done()
    try:
        with count_progress("images") as advance:
            for came, (number, row) in enumerate(rows, 1):
                advance(came, len(items), done.count(row))
                if row.stop_reason == "skipped":
                    continue
                if target.has_tables:
                    done.rows[number] = row
                _write_beside(items[number], row, target)
                if row.error is not None:
                    print_error(f"{row.path or row.custom_id}: {row.error}")
    finally:
        _write_tables([row for _, row in sorted(done.rows.items())], target)
    failed = f", {done.failed} failed" if done.failed else ""
    left_out = f", {done.skipped} had their files already" if done.skipped else ""
    announce(f"{done.answered} answered", f"in {target.output}{failed}{left_out}")
    return done


def _write_beside(item: BatchItem, row: BatchRow, target: OutputFlags) -> None:
    for suffix in target.suffixes:
        path = sidecar(item, suffix)
        if path is not None and not item.skip:
            write_sidecar(path, row, target.existing)


def _write_tables(rows: list[BatchRow], target: OutputFlags) -> None:
    tables: list[tuple[Path | None, Callable[[Path, list[BatchRow]], None]]] = [
        (target.csv, write_csv), (target.parquet, write_parquet), (target.openai, write_openai)
    ]  # fmt: skip
    for path, write in tables:
        if path is not None:
            write(path, rows)


def _foretell(
    items: list[BatchItem],
    prompt: str,
    model: Path | None,
    max_tokens: int | None,
    tiles: TileFlags,
    loading: LoadingFlags,
) -> None:
    """Tiles, tokens and hours on this machine, without loading the weights."""
    bundle = read_bundle(model if model is not None else demo_bundle())
    plan = partial(
        plan_question, bundle, question=prompt, choice=tiles.choice(), device=loading.device,
        decoder=loading.decoder(), vision=VisionOptions(device=loading.vision_device),
    )  # fmt: skip
    counted: Counter[Any] = Counter()
    sizes: dict[Any, tuple[int, int]] = {}
    with PdfReader() as reader:
        for item in items:
            try:
                size = None if item.request is not None else image_size(item.image, reader=reader)
            except AyaEdgeError as error:
                print_error(str(error))
                continue
            key = _kind(size, bundle.manifest, tiles.choice())
            counted[key] += 1
            if size is not None:
                sizes[key] = size
    costs = {key: plan([sizes[key]] if key in sizes else []) for key in counted}
    _report(counted, costs, len(items), max_tokens or _ASSUMED_TOKENS)


def _kind(size: tuple[int, int] | None, manifest: Manifest, choice: TileChoice) -> Any:
    """What images have in common that cost the same."""
    if size is None or choice.policy == "auto":
        return size
    cost = image_cost(size, manifest, choice)
    return cost.columns, cost.rows


def _report(counted: Counter[Any], costs: dict[Any, QuestionCost], items: int, answer: int) -> None:
    total = sum(counted.values())
    tiles = sum(sum(image.tiles for image in costs[key].images) * count for key, count in counted.items())
    tokens = sum(costs[key].prompt_tokens * count for key, count in counted.items())
    write_line(f"{total} rows, {tiles:,} tiles, {tokens:,} tokens of prompts")
    if total < items:
        write_line(f"{items - total} cannot be read")
    if all(cost.first_token_seconds is not None for cost in costs.values()) and costs:
        seconds = sum(_seconds(costs[key], answer) * count for key, count in counted.items())
        write_line(f"{seconds / 3600:,.1f} hours on this machine, with {answer} tokens of answer each")
    else:
        write_line("hours: not measured here yet (ayaedge tune)")
    for fault in dict.fromkeys(fault for cost in costs.values() for fault in cost.faults):
        stderr.print(fault, style="red")
    sys.stdout.flush()


def _seconds(cost: QuestionCost, answer: int) -> float:
    assert cost.first_token_seconds is not None
    return cost.first_token_seconds + answer / (cost.answer_tokens_per_second or 1e9)
