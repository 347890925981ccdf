"""Who answers the items of a batch: a model in this process, or a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ayaedge.batch.items import BatchItem
from ayaedge.batch.journal import BatchRow
from ayaedge.batch.runner import BatchOptions
from ayaedge.cli.options import LoadingFlags

RayOption = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]", help="Let a Ray cluster answer: HOST:PORT, auto, or one of this machine alone."
    ),
]
ParallelOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Answers at once. [default: 4 where they fit and stay the same]"),
]
AheadOption = Annotated[
    bool | None,
    typer.Option(
        "--ahead/--no-ahead", help="Encode the next image meanwhile. [default: where both halves run apart]"
    ),
]
_ADDRESS = re.compile(r"local|auto|[^/\\]+:\d+")
"""Of a cluster; what else stands behind --ray is an input, or an option."""


class BatchCommand(TyperCommand):
    """`batch`, whose --ray goes with an address or without one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for place, (given, following) in enumerate(pairwise([*args, ""])):
            if given == "--":
                break
            if given == "--ray" and not _ADDRESS.fullmatch(following):
                args = [*args[:place], "--ray=local", *args[place + 1 :]]
                break
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Asked:
    """What is asked about what, and where it is written down."""

    items: list[BatchItem]
    prompt: str
    system: str | None
    local_files: tuple[Path, ...]
    options: dict[str, Any]
    journal: Path
    going_on: BatchOptions

    @contextmanager
    def rows(
        self, bundle: Path | None, loading: LoadingFlags, ray: str | None, *, verbose: bool
    ) -> Iterator[Iterator[tuple[int, BatchRow]]]:
        """The rows as they come, each with the number of its item, for as long as the model is loaded."""
        if ray is not None:
            from ayaedge.ray.cluster import connected

            with connected(ray, verbose=verbose):
                yield self._of_cluster(bundle, loading, verbose)
            return
        with loading.load(bundle, verbose=verbose) as model:
            rows = model.batch(
                self.items, self.prompt, system=self.system, journal=self.journal, **vars(self.going_on),
                local_files=self.local_files, **self.options,
            )  # fmt: skip
            yield enumerate(rows)

    def _of_cluster(
        self, bundle: Path | None, loading: LoadingFlags, verbose: bool
    ) -> Iterator[tuple[int, BatchRow]]:
        from ayaedge.ray.items import answer_items
        from ayaedge.ray.job import Job, settled_bundle

        job = Job(
            settled_bundle(bundle), self.prompt, self.system, self.options, loading.engine(verbose=verbose),
            self.going_on.retries, tuple(path.absolute() for path in self.local_files), self.going_on.parallel,
            self.going_on.ahead,
        )  # fmt: skip
        return answer_items(self.items, job, self.journal, self.going_on)
