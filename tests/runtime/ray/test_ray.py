"""A real cluster of two Ray nodes on this machine: the rows of a batch without Ray, whatever happens to a worker."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
import pytest
from conftest import ALL_PROCESSORS, ROOT
from PIL import Image

from ayaedge import AyaVision, BatchItem, Page
from ayaedge.batch.runner import BatchOptions
from ayaedge.bundle import demo_bundle
from ayaedge.ray.job import Job
from command_line import ayaedge
from served import CELLS, HEART, QUESTION, data_url, until

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra `ray`)"),
    pytest.mark.skipif(os.name == "nt", reason="Ray starts no cluster of several nodes on Windows"),
    # threads and sockets of Ray that its own shutdown leaves to the collector
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray"),
]
ASKED = ["-p", "What number is at the bottom left of {name}?", "-n", "12", "--max-tiles", "1", "-t", "1"]
JOB = Job(None, "What is in {name}?", options={"max_tokens": 6, "max_tiles": 1})
ONLY_FIRST = "bundle-of-the-first-node"
TOKEN = "0123456789abcdef" * 4


@dataclass
class Nodes:
    """A cluster on loopback; the first node alone has the bundle of a name."""

    address: str
    raylets: list[psutil.Process] = field(default_factory=list)

    def workers(self) -> list[psutil.Process]:
        """Processes that hold a model, those of the second node last."""
        found = [one for raylet in self.raylets for one in raylet.children(recursive=True)]
        return [process for process in found if "MapWorker" in command_of(process)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def start_cluster(data: Path) -> Any:
    """Two nodes, the first with another directory for data. Ray gives its own processes 15 seconds, however busy."""
    from ray.cluster_utils import Cluster

    common = {"num_cpus": 1, "memory": 1 << 30, "include_dashboard": False}
    for left in (2, 1, 0):
        cluster = Cluster(shutdown_at_exit=True)
        try:
            cluster.add_node(node_name="first", env_vars={"XDG_DATA_HOME": str(data)}, **common)
            cluster.add_node(node_name="second", **common)
            return cluster
        except Exception:
            cluster.shutdown()
            if not left:
                raise
    return None


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    data = tmp_path_factory.mktemp("data")
    shutil.copytree(demo_bundle(), data / "ayaedge" / "bundles" / ONLY_FIRST)
    private = Path(mkdtemp(prefix="ayaedge-test-", dir="/tmp"))  # names of sockets are short
    before = os.sched_getaffinity(0) if ALL_PROCESSORS else set()
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("RAY_TMPDIR", str(private))
        (private / "ray").mkdir()
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        from ayaedge.ray.cluster import alone, connected, require_ray

        stack.enter_context(alone(require_ray()))
        if before:
            os.sched_setaffinity(0, ALL_PROCESSORS)
        cluster = start_cluster(data)
        try:
            found = [cluster.head_node, *cluster.worker_nodes]
            raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in found]
            with connected(cluster.address):  # once: processes that imported everything serve one connection
                yield Nodes(cluster.address, raylets)
        finally:
            logging.getLogger("ray").setLevel(logging.ERROR)
            cluster.shutdown()
            if before:
                os.sched_setaffinity(0, before)
            shutil.rmtree(private, ignore_errors=True)


def rows_of(journal: Path) -> list[dict[str, Any]]:
    """Rows without what the moment decides: seconds, tokens that were known already, the name of a completion."""
    rows = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    for row in rows:
        for name in ("seconds", "usage", "completion"):
            row.pop(name, None)
    return sorted(rows, key=lambda row: str(row.get("path", row.get("custom_id"))))


def fill(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (20, 20), (number % 256, 90, number // 256)).save(folder / f"{number}.png")


def test_rows_are_those_of_a_batch_without_ray_though_a_worker_is_killed_in_the_middle(
    nodes: Nodes, tmp_path: Path
) -> None:
    images, requests = tmp_path / "images", tmp_path / "in.jsonl"
    fill(images, 40)
    (images / "broken.png").write_bytes(b"x")
    content = [
        {"type": "image_url", "image_url": {"url": data_url(CELLS)}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 6}
    request = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
    requests.write_text(json.dumps(request) + "\n")
    journal, alone = tmp_path / "ray.jsonl", tmp_path / "alone.jsonl"
    inputs = ["batch", images, CELLS, f"{CELLS}#page=1", requests]
    at_kill: list[int] = []

    def kill_one() -> None:
        until(lambda: count_lines(journal) >= 5)
        at_kill.append(count_lines(journal))
        nodes.workers()[-1].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    done = ayaedge(*inputs, "--ray", nodes.address, "-o", journal, *ASKED, "--csv", tmp_path / "a.csv")
    killer.join()
    assert (done.returncode, "43 answered" in done.stderr, "1 failed" in done.stderr) == (1, True, True)
    assert at_kill[0] < 40
    assert ayaedge(*inputs, "-o", alone, *ASKED).returncode == 1
    assert rows_of(journal) == rows_of(alone)
    assert len((tmp_path / "a.csv").read_text("utf-8").splitlines()) == 45
    known = journal.read_bytes()
    (images / "broken.png").unlink()
    for more in ([], ["--ray", nodes.address]):  # each goes on from what the other wrote
        assert ayaedge(*inputs, "-o", journal, *ASKED, *more).returncode == 0
        assert journal.read_bytes() == known


def test_a_bundle_that_is_missing_on_a_node_is_said_at_once_with_the_nodes_name(
    nodes: Nodes, tmp_path: Path
) -> None:
    def ask(bundle: str) -> str:
        done = ayaedge(
            "batch", CELLS, "-m", bundle, "--ray", nodes.address, "-o", tmp_path / "a.jsonl", *ASKED
        )
        assert done.returncode == 1
        assert {process.pid for process in nodes.workers()} <= before, "a model was loaded"
        return " ".join(done.stderr.split())

    before = {process.pid for process in nodes.workers()}
    said = ask(ONLY_FIRST)
    assert re.search(rf"node second( \(\S+\))?: there is no bundle at {ONLY_FIRST}", said)
    assert "node first" not in said
    said = ask(str(tmp_path / "nowhere"))
    assert "first" in said
    assert "second" in said
    assert said.count("there is no bundle at") == 2
    assert not (tmp_path / "a.jsonl").exists()


def test_an_address_at_which_nobody_listens_is_said_at_once(nodes: Nodes, tmp_path: Path) -> None:
    for address, why in (("127.0.0.1:1", "refused"), ("127.0.0.1:99999", "")):
        done = ayaedge("batch", CELLS, "--ray", address, "-o", tmp_path / "a.jsonl", *ASKED)
        assert done.returncode == 1
        assert f"no Ray cluster answers at {address}" in " ".join(done.stderr.split())
        assert why in done.stderr


def test_a_dataset_with_images_in_it_comes_back_with_answers(
    nodes: Nodes, demo_model: AyaVision, tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet
    import ray

    from ayaedge.ray import answer

    files = [CELLS, HEART, *sorted(CELLS.parent.glob("*.jpg"))[:2]]
    table = pyarrow.table({
        "key": list(range(len(files) + 1)), "bytes": [*(file.read_bytes() for file in files), b"x"],
        "path": [*map(str, files), "bad.png"],
    })  # fmt: skip
    options: Any = {"max_tokens": 6, "max_tiles": 1}
    answers = answer(ray.data.from_arrow(table), prompt="What is in {name}?", **options)
    answers.write_parquet(str(tmp_path / "out"))
    found = sorted(pyarrow.parquet.read_table(tmp_path / "out").to_pylist(), key=lambda row: row["key"])
    expected = list(demo_model.batch(files, "What is in {name}?", **options))
    names = ("path", "sha256", "fingerprint", "prompt", "answer", "error")
    for row, other in zip(found, expected, strict=False):
        assert {name: row[name] for name in names} == {name: getattr(other, name) for name in names}
    assert len(found) == len(files) + 1
    assert "ImageError" in found[-1]["error"]
    assert "bytes" not in found[0]


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_node_says_whether_it_has_the_images(nodes: Nodes) -> None:
    from ayaedge.ray.nodes import examine_nodes

    elsewhere = Path("/proc/self/stat")  # another content in each process
    if not elsewhere.exists():
        pytest.skip("only Linux has a file whose content each process sees otherwise")
    for samples, seen in (([CELLS], True), ([CELLS, elsewhere], False)):
        assert [node.report.sees for node in examine_nodes(JOB, samples)] == [seen, seen]


@pytest.mark.slow
def test_images_that_a_node_does_not_have_are_sent_and_give_the_same_rows(
    nodes: Nodes, demo_model: AyaVision
) -> None:
    from ayaedge.ray.items import answer_items

    pdf = ROOT / "tests" / "runtime" / "images" / "pdfs"
    items = [
        BatchItem(CELLS),
        BatchItem(HEART),
        BatchItem(Page(CELLS, 1)),
        BatchItem(CELLS.with_name("none.png")),
    ]
    items += [BatchItem(Page(path, 1)) for path in sorted(pdf.glob("*.pdf"))[:2]]
    expected = {row.identity: row.answer for row in demo_model.batch(items, JOB.prompt, **JOB.options)}
    assert len(expected) == len(items)
    rows = [row for _, row in answer_items(items, JOB, None, BatchOptions(), send=True)]
    assert {row.identity: row.answer for row in rows} == expected


@pytest.mark.slow
def test_rays_own_checkpoints_go_on_with_a_dataset(nodes: Nodes, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet
    import ray
    from ray.data.checkpoint import CheckpointConfig

    from ayaedge.ray import answer

    fill(tmp_path / "images", 9)
    paths = sorted(map(str, (tmp_path / "images").iterdir()))

    def run(count: int) -> list[dict[str, Any]]:
        pyarrow.parquet.write_table(pyarrow.table({"path": paths[:count]}), tmp_path / "in.parquet")
        dataset = ray.data.read_parquet(str(tmp_path / "in.parquet"))
        answers = answer(dataset, prompt=JOB.prompt, rows_at_once=2, **JOB.options)
        answers.write_parquet(str(tmp_path / "out"))
        return sorted(pyarrow.parquet.read_table(tmp_path / "out").to_pylist(), key=lambda row: row["path"])

    context = ray.data.DataContext.get_current()
    place = str(tmp_path / "checkpoint")
    context.checkpoint_config = CheckpointConfig("path", place, delete_checkpoint_on_success=False)
    try:
        first = run(5)
        second = run(9)
    finally:
        context.checkpoint_config = None
    assert [row["path"] for row in second] == paths
    assert second[:5] == first, "rows were computed again: their seconds differ"
