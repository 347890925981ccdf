"""What the nodes of a cluster have: the same ayaedge, the bundle, room for models."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayaedge import __version__
from ayaedge.bundle import demo_bundle
from ayaedge.cache.verified import open_verified
from ayaedge.checks import check_options, whole_number
from ayaedge.errors import AyaEdgeError, BackendError, BundleError, OutOfMemoryError, list_faults
from ayaedge.images.tile_budget import TileChoice
from ayaedge.planning.question_plan import plan_question
from ayaedge.ray.cluster import require_ray
from ayaedge.ray.job import Job

logger = logging.getLogger(__name__)

_WORKER_BYTES = 100_000_000
"""Of Ray, Arrow and pandas in the process of a model."""


@dataclass(frozen=True)
class Report:
    """What a node says of itself."""

    version: str
    fault: str | None = None
    """Why it cannot load the bundle."""
    identity: bytes = b""
    """Of the bundle."""
    needed: int = 0
    """Bytes of memory that a model takes there, with an image of the most tiles."""
    sees: bool = True
    """Whether the files that it was asked for lie there, with the same content."""


@dataclass(frozen=True)
class Node:
    """A node that may answer."""

    name: str
    id: str
    processors: int
    gpus: int
    memory: int
    """Bytes that Ray gives away there."""
    report: Report


@dataclass(frozen=True)
class Share:
    """How many models a cluster holds, and what Ray is to set aside for each."""

    models: int
    processors: int
    gpus: int
    memory: int

    def ray_options(self) -> dict[str, Any]:
        """Arguments of `map_batches`; a processor is left for reading and writing, or Ray would wait for one."""
        return {"num_cpus": self.processors - 1, "num_gpus": self.gpus or None, "memory": self.memory}


def examine_nodes(job: Job, samples: Sequence[Path] = ()) -> list[Node]:
    """Every node with processors; the error names those that cannot answer as the others do, all at once.

    `samples` are files here, which a node sees if they lie there too. BundleError where the bundle or ayaedge is
    missing or another one, BackendError where there is no node.
    """
    ray = require_ray()
    found = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not found:
        raise BackendError("no node of the Ray cluster has a processor to give away")
    digests = {str(path): _digest(path) for path in samples}
    remote = ray.remote(num_cpus=0)(_report)
    asked = [remote.options(**_on(ray, node, job)).remote(job, digests) for node in found]
    nodes = [_node(node, _answer(ray, ref)) for node, ref in zip(found, asked, strict=True)]
    _check(nodes)
    return nodes


def share_out(nodes: Sequence[Node], threads: int | None, device: str) -> Share:
    """As many models as there is room for, each with `threads` processors, or as many as the smallest node has.

    With a GPU each where all nodes have one, or where `device` names one and any has it; then a node's processors are
    shared among its GPUs. OutOfMemoryError where there is room for none.
    """
    check_options(whole_number("threads", threads, least=1, optional=True))
    with_gpus = [node for node in nodes if node.gpus]
    on_gpus = bool(with_gpus) and device != "cpu" and (device != "auto" or len(with_gpus) == len(nodes))
    if with_gpus and not on_gpus and device == "auto":
        logger.warning(
            "GPUs of some nodes are left alone, as others have none: name a device to use them alone"
        )
    used = with_gpus if on_gpus else list(nodes)
    processors = threads or max(min(node.processors // (node.gpus if on_gpus else 1) for node in used), 1)
    memory = max(node.report.needed for node in used)
    models = 0
    for node in used:
        room = min(
            node.processors // processors, node.memory // max(memory, 1), node.gpus if on_gpus else 1 << 20
        )
        models += room
        if not room:
            logger.warning("node %s answers nothing: %s", node.name, _lacks(node, processors, memory))
    if not models:
        raise OutOfMemoryError(
            f"no node has room for a model: {_lacks(used[0], processors, memory)} (ray start can be told to give more)"
        )
    logger.info("%d models on %d nodes, each with %d processors", models, len(used), processors)
    return Share(models, processors, int(on_gpus), memory)


def _lacks(node: Node, processors: int, memory: int) -> str:
    return (
        f"a model takes {processors} processors and {memory / 1e9:.1f} GB, and Ray gives away {node.processors} and "
        f"{node.memory / 1e9:.1f} GB on {node.name}"
    )


def _report(job: Job, digests: dict[str, str]) -> Report:
    """On the node itself."""
    try:
        return _loadable(job, digests)
    except AyaEdgeError as error:
        return Report(__version__, str(error))


def _loadable(job: Job, digests: dict[str, str]) -> Report:
    device, decoder, vision, cache = vars(job.engine).values()
    cache = cache.settled()
    bundle = open_verified(demo_bundle() if job.bundle is None else job.bundle, cache.root)
    side = bundle.manifest.tiling.tile_size
    choice = TileChoice(max_tiles=job.options.get("max_tiles"))
    cost = plan_question(
        bundle, [(4 * side, 3 * side)], job.prompt, choice=choice, device=device, decoder=decoder, vision=vision,
        cache=cache,
    )  # fmt: skip
    needed = cost.memory.total + _WORKER_BYTES
    sees = all(Path(path).is_file() and _digest(Path(path)) == digest for path, digest in digests.items())
    return Report(__version__, None, bundle.identity, needed, sees)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _on(ray: Any, node: dict[str, Any], job: Job) -> dict[str, Any]:
    """On that node and no other; without a share of its GPU the process would see none."""
    gpu = node["Resources"].get("GPU") and job.engine.device != "cpu"
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return {"scheduling_strategy": place, "num_gpus": 0.001 if gpu else 0}


def _answer(ray: Any, ref: Any) -> Report:
    """What a node said; without ayaedge, or with one that does not know the question, it says nothing."""
    try:
        report: Report = ray.get(ref)
    except (ray.exceptions.RayError, AttributeError, ImportError) as error:
        said = next((line for line in reversed(str(error).splitlines()) if line.strip()), "nothing")
        return Report("", f"ayaedge {__version__} is not installed there ({said.strip()})")
    return report


def _node(node: dict[str, Any], report: Report) -> Node:
    resources = node["Resources"]
    name = (
        node["NodeName"]
        if node["NodeName"] == node["NodeManagerHostname"]
        else (f"{node['NodeName']} ({node['NodeManagerHostname']})")
    )
    return Node(
        name, node["NodeID"], int(resources["CPU"]), int(resources.get("GPU", 0)), int(resources.get("memory", 0)),
        report,
    )  # fmt: skip


def _check(nodes: Sequence[Node]) -> None:
    faults = [f"node {node.name}: {node.report.fault}" for node in nodes if node.report.fault]
    if faults:
        raise BundleError(list_faults("nodes of the Ray cluster cannot answer", faults))
    for what, values in (
        ("versions of ayaedge", {node.name: node.report.version for node in nodes}),
        ("bundles", {node.name: node.report.identity.hex()[:12] for node in nodes}),
    ):
        if len(set(values.values())) > 1:
            raise BundleError(f"nodes of the Ray cluster have different {what}: {values}")
