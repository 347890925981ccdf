"""A question about every row of a Ray dataset, whose rows come back with answers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ayaedge.batch.items import BatchItem
from ayaedge.batch.outputs import arrow_table
from ayaedge.cache.options import CacheOptions
from ayaedge.checks import check_options, whole_number
from ayaedge.decoder.options import DecoderOptions
from ayaedge.engine.loading import EngineOptions
from ayaedge.errors import InvalidOptionError
from ayaedge.hardware.devices import Device
from ayaedge.images.pages import Page
from ayaedge.options import AnswerKeywords, answer_options
from ayaedge.ray.cluster import require_ray
from ayaedge.ray.job import Answerer, Job, settled_bundle
from ayaedge.ray.nodes import Share, examine_nodes, share_out
from ayaedge.vision.session import VisionOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

_IMAGES = ("bytes", "image", "path")
"""Columns that may hold the image, the first that is there."""
_SAID = ("path", "page", "prompt", "custom_id")
"""Columns that say more of a row; the answer's have the same names."""
_TASK_RETRIES = 3
"""Times that rows are given to another actor when theirs was lost; an image that ends processes must not go round."""


def answer(
    dataset: Any,
    *,
    bundle: str | Path | None = None,
    prompt: str = "",
    image: str | None = None,
    system: str | None = None,
    device: Device = "auto",
    decoder: DecoderOptions | None = None,
    vision: VisionOptions | None = None,
    cache: CacheOptions | None = None,
    retries: int = 1,
    rows_at_once: int = 4,
    local_files: Path | Sequence[Path] = (),
    **options: Unpack[AnswerKeywords],
) -> Any:
    """A lazy `ray.data.Dataset` with the columns of a batch's row behind those of `dataset`, a row for each.

    `image` names the column with the images: paths that lead to the same file on every node, bytes of files,
    `{"bytes": …, "path": …}` or arrays; without it `bytes`, `image` or `path`, the first that is there. `path`, `page`,
    `prompt` and `custom_id` are a row's own, where there are such columns. Columns with the images themselves are left
    away. A row that fails says so in `error`, and is no end of the job.

    The bundle must lie on every node: BundleError names the nodes where it does not, before anything runs. Each
    actor holds a model, with `decoder.threads` processors, or as many as the smallest node has, and gets
    `rows_at_once` rows. `device` and the rest as `AyaVision.load` and `AyaVision.batch` take them. `path`, `sha256`,
    `page` and `fingerprint` are those of `AyaVision.batch`.
    """
    check_options(
        whole_number("rows_at_once", rows_at_once, least=1),
        whole_number("retries", retries, least=0, most=100),
    )
    answer_options(**options)
    engine = EngineOptions(device, decoder or DecoderOptions(), vision, cache or CacheOptions())
    allowed = tuple(map(Path, [local_files] if isinstance(local_files, (str, Path)) else local_files))
    job = Job(settled_bundle(bundle), prompt, system, dict(options), engine, retries, allowed)
    share = share_out(examine_nodes(job), engine.decoder.threads, device)
    parts = dataset.repartition(target_num_rows_per_block=rows_at_once)
    return mapped(parts, ColumnAnswerer, (job, share.processors, image), share, rows_at_once)


def mapped(
    dataset: Any, actor: type, arguments: tuple[Any, ...], share: Share, rows: int | None, **pool: int
) -> Any:
    """The dataset through a pool of actors, which grows to the share; each gets its next rows ahead of time."""
    ray = require_ray()
    pool = pool or {"min_size": 1, "max_size": share.models}
    with warnings.catch_warnings():
        # max_task_retries has no place of its own yet, and Ray would go on for ever
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        return dataset.map_batches(
            actor, fn_constructor_args=arguments, batch_size=rows, batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(max_tasks_in_flight_per_actor=2, **pool),
            max_task_retries=_TASK_RETRIES, **share.ray_options(),
        )  # fmt: skip


@dataclass(frozen=True)
class NamedItem(BatchItem):
    """An item whose image comes from elsewhere than its name says."""

    name: str | None = None
    """Of its file, for the row and the prompt's variables."""
    number: int | None = None
    """Of its page."""

    @property
    def file(self) -> Path | None:
        return None if self.name is None else Path(self.name)

    @property
    def page(self) -> int | None:
        return self.number


class ColumnAnswerer(Answerer):
    """Answers rows of a table."""

    def __init__(self, job: Job, processors: int, image: str | None) -> None:
        super().__init__(job, processors)
        self._image = image

    def __call__(self, table: Any) -> Iterator[Any]:
        column = self._image or next((name for name in _IMAGES if name in table.column_names), "")
        if column not in table.column_names:
            raise InvalidOptionError(
                f"the dataset has no column {column or ', '.join(_IMAGES)}: {table.column_names}"
            )
        wanted = [name for name in dict.fromkeys((column, *_SAID)) if name in table.column_names]
        items = [_item(record, column) for record in table.select(wanted).to_pylist()]
        answers = arrow_table(list(self.rows(items)))
        for name in table.column_names:
            if name not in answers.column_names and name not in (column, *_IMAGES):
                answers = answers.append_column(name, table[name])
        yield answers


def _item(record: dict[str, Any], column: str) -> BatchItem:
    image, name, page = record[column], record.get("path"), record.get("page")
    if isinstance(image, dict):
        name = name or image.get("path")
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if isinstance(image, list):
        image = np.asarray(image, np.uint8)
    if isinstance(image, str):
        name = name or image
    image = image if page is None else Page(image, page)
    return NamedItem(image, record.get("prompt"), record.get("custom_id"), name=name, number=page)
