"""The rows of a batch's items, answered by a cluster, and the journal that goes on where they stopped."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ayaedge.batch.items import BatchItem
from ayaedge.batch.journal import BatchRow, Journal, parse_row
from ayaedge.batch.runner import BatchOptions, FailureRate, Wanted, copy_answer, known_row
from ayaedge.errors import AyaEdgeError, BackendError
from ayaedge.images.pages import Page
from ayaedge.images.sources import TakenPath
from ayaedge.options import answer_options
from ayaedge.ray.cluster import require_ray
from ayaedge.ray.dataset import NamedItem, mapped
from ayaedge.ray.job import Answerer, Job
from ayaedge.ray.nodes import Share, examine_nodes, share_out

_ROWS_AT_ONCE = 4
"""Rows that an actor gets; fewer where there are few, so that all have work to the end."""
_MOST_TASKS = 50_000
"""Portions of a job; each costs this process memory as long as the job runs."""
_Numbered = tuple[int, BatchRow]


def answer_items(
    items: Sequence[BatchItem],
    job: Job,
    journal: Path | None,
    going_on: BatchOptions,
    *,
    send: bool | None = None,
) -> Iterator[_Numbered]:
    """The number of each item with its row, as the rows come: those that are known at once, the others in any order.

    The journal is that of a batch without Ray, and is written by this process alone. Where a node does not have the
    images under the same paths, they are read here and sent; `send` says it either way. BatchError where too many
    rows fail, BackendError where the cluster is lost; errors of `examine_nodes` before anything runs.
    """
    wanted_options = answer_options(**job.options)
    nodes = examine_nodes(job, _samples(items))
    share = share_out(nodes, job.engine.decoder.threads, job.engine.device)
    if send is None:
        send = not all(node.report.sees for node in nodes)
    wanted = Wanted(nodes[0].report.identity, job.prompt, job.system, wanted_options)
    with Journal(journal) as kept:
        yield from _Run(wanted, kept, going_on).rows(items, partial(_answered, job, share, send))


def _samples(items: Sequence[BatchItem]) -> list[Path]:
    """Files that tell whether a node has them all: the first and the last."""
    files = [item.file for item in items if item.request is None and item.file is not None]
    return [file.absolute() for file in {files[0], files[-1]} if file.is_file()] if files else []


@dataclass
class _Todo:
    number: int
    item: BatchItem
    blank: BatchRow


class _Run:
    def __init__(self, wanted: Wanted, journal: Journal, options: BatchOptions) -> None:
        self._wanted, self._journal, self._options = wanted, journal, options
        self._judge = FailureRate(options)
        self._todo: list[_Todo] = []
        self._copies: dict[str, list[_Todo]] = defaultdict(list)
        """Items with the work of another one, which waits for that."""

    def rows(
        self, items: Sequence[BatchItem], answered: Callable[[Sequence[_Todo]], Iterator[_Numbered]]
    ) -> Iterator[_Numbered]:
        for number, item in enumerate(items):
            if (row := self._at_once(number, item)) is not None:
                yield number, row
        missing = {todo.number: todo for todo in self._todo}
        for number, row in answered(self._todo) if missing else ():
            if (
                todo := missing.pop(number, None)
            ) is not None:  # an actor that was lost may have said it already
                yield number, self._note(row)
                for copy in self._copies.pop(todo.blank.work, ()):
                    yield copy.number, self._copied(copy.blank, row)

    def _at_once(self, number: int, item: BatchItem) -> BatchRow | None:
        """A row for which nothing is to be computed; other items are put down."""
        blank, problem = self._wanted.blank(item)
        if not self._options.overwrite and (known := known_row(self._journal, blank)) is not None:
            return known
        if item.skip:
            return replace(blank, stop_reason="skipped")
        if problem is not None:
            return self._note(_failed(blank, problem))
        waiting = blank.work in self._copies
        (self._copies[blank.work] if waiting else self._todo).append(_Todo(number, item, blank))
        self._copies.setdefault(blank.work, [])
        return None

    def _note(self, row: BatchRow) -> BatchRow:
        self._journal.append(row)
        self._judge.count(row)
        return row

    def _copied(self, blank: BatchRow, row: BatchRow) -> BatchRow:
        if row.error is None and row.work == blank.work:
            return copy_answer(self._journal, row, blank)
        error = row.error or f"{row.path} was changed while the batch ran"
        return self._note(replace(blank, error=error, attempts=row.attempts))


def _failed(blank: BatchRow, problem: AyaEdgeError) -> BatchRow:
    return replace(blank, error=f"{type(problem).__name__}: {problem}")


def _answered(job: Job, share: Share, send: bool, todo: Sequence[_Todo]) -> Iterator[_Numbered]:
    ray = require_ray()
    few = max(1, min(_ROWS_AT_ONCE, len(todo) // (4 * share.models)))
    portions = max(1, min(len(todo) // few, _MOST_TASKS))
    records = [{"number": one.number, "item": json.dumps(_packed(one))} for one in todo]
    dataset = ray.data.from_items(records, override_num_blocks=portions)
    if send:
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        dataset = dataset.map_batches(
            _with_bytes, batch_size=1, batch_format="pyarrow", num_cpus=0, label_selector=here
        )
    size = min(share.models, portions)
    dataset = mapped(dataset, ItemAnswerer, (job, share.processors), share, None, size=size)
    dataset.context.target_max_block_size = 1  # a row is handed over as soon as it is there
    try:
        for record in dataset.iter_rows():
            yield record["number"], parse_row(record["row"].encode())
    except ray.exceptions.RayError as error:
        raise _lost(error) from error


def _with_bytes(table: Any) -> Any:
    """On this machine, in a process of the cluster: the files of the images; what cannot be read is said as usual."""
    import pyarrow

    contents = []
    for text in table["item"].to_pylist():
        given = json.loads(text)
        try:
            contents.append(Path(given["path"]).read_bytes() if given.get("name") else None)
        except OSError:
            contents.append(None)
    return table.append_column("bytes", pyarrow.array(contents, pyarrow.large_binary()))


def _lost(error: BaseException) -> AyaEdgeError:
    """What ended a job: an error of ours that an actor raised, or what Ray says."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, AyaEdgeError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return BackendError(f"Ray gave the batch up: {lines[-1] if lines else type(error).__name__}")


def _packed(todo: _Todo) -> dict[str, Any]:
    """An item so that it means the same in another process's directory."""
    item = todo.item
    if item.request is not None:
        return {"custom_id": item.custom_id, "request": item.request}
    file = item.image.file if isinstance(item.image, Page) else item.image
    name = None if item.file is None else str(item.file)
    path = str(file) if name is None else str(Path(file).absolute())
    return {
        "custom_id": item.custom_id, "question": todo.blank.prompt, "name": name, "given": str(file), "path": path,
        "page": item.page,
    }  # fmt: skip


@dataclass(frozen=True)
class _AskedItem(NamedItem):
    """An item whose question is filled in already: names of directories are those of the machine that asks."""

    asked: str = ""

    def question(self, prompt: str) -> str:  # noqa: ARG002
        return self.asked


class ItemAnswerer(Answerer):
    """Answers items of a batch on another machine."""

    def __call__(self, table: Any) -> Iterator[Any]:
        import pyarrow

        records = table.to_pylist()
        items = [_unpacked(json.loads(record["item"]), record.get("bytes")) for record in records]
        for record, row in zip(records, self.rows(items), strict=True):
            text = json.dumps(row.to_dict(), ensure_ascii=False)
            yield pyarrow.table({"number": [record["number"]], "row": [text]})


def _unpacked(given: dict[str, Any], content: bytes | None) -> BatchItem:
    if "request" in given:
        return BatchItem(custom_id=given["custom_id"], request=given["request"])
    file: Any = given["path"] if given["name"] is None else TakenPath(given["given"], Path(given["path"]))
    file = file if content is None else content
    image = file if given["page"] is None else Page(file, given["page"])
    return _AskedItem(
        image, custom_id=given["custom_id"], name=given["name"], number=given["page"], asked=given["question"]
    )
