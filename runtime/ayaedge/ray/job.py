"""What is asked of a cluster, and the actor that holds a model and answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ayaedge.batch.items import BatchItem
from ayaedge.batch.journal import BatchRow
from ayaedge.engine.loading import EngineOptions
from ayaedge.hardware.machine import usable_threads
from ayaedge.model import AyaVision
from ayaedge.vision.session import VisionOptions


@dataclass(frozen=True)
class Job:
    """A bundle as every node shall load it, and the question."""

    bundle: str | None
    """A directory that is there on every node, or a name; None is the demonstration model."""
    prompt: str
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords of every way to ask."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    retries: int = 1
    local_files: tuple[Path, ...] = ()
    parallel: int | None = None
    """Answers that an actor writes side by side."""
    ahead: bool | None = None
    """Whether it encodes the next image meanwhile."""

    def load(self, processors: int) -> AyaVision:
        """The model, on so many processors; with all of a machine's it is loaded as anywhere else."""
        device, decoder, vision, cache = vars(self.engine).values()
        if processors < usable_threads():
            decoder = replace(decoder, threads=decoder.threads or processors)
            vision = vision or VisionOptions()
            vision = replace(vision, threads=vision.threads or processors)
        return AyaVision.load(self.bundle, device=device, decoder=decoder, vision=vision, cache=cache)


def settled_bundle(bundle: str | Path | None) -> str | None:
    """How nodes shall know a bundle: a directory here by its whole path, a name that is none here by itself."""
    if bundle is None:
        return None
    path = Path(bundle)
    return str(path) if path.name == str(path) and not path.exists() else str(path.absolute())


class Answerer:
    """An actor's model, loaded once; subclasses say how rows come and go."""

    def __init__(self, job: Job, processors: int) -> None:
        self._job, self._model = job, job.load(processors)

    def rows(self, items: Iterable[BatchItem]) -> Iterator[BatchRow]:
        """Their rows, in their order; what fails is said in its row."""
        job = self._job
        return self._model.batch(
            items, job.prompt, system=job.system, retries=job.retries, max_error_rate=1,
            local_files=job.local_files, parallel=job.parallel, ahead=job.ahead, **job.options,
        )  # fmt: skip
