"""How many models a cluster gets, and what stands behind --ray; nothing of Ray is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from ayaedge import InvalidOptionError, OutOfMemoryError
from ayaedge.cli.batch import app
from ayaedge.ray.job import settled_bundle
from ayaedge.ray.nodes import Node, Report, Share, share_out
from command_line import ayaedge
from served import CELLS

GB = 10**9


def node(processors: int, memory: int = 16, gpus: int = 0, needed: int = 7) -> Node:
    return Node("n", "id", processors, gpus, memory * GB, Report("1", None, b"x", needed * GB))


@pytest.mark.parametrize(
    ("nodes", "threads", "device", "expected"),
    [
        ([node(8), node(8)], None, "auto", Share(2, 8, 0, 7 * GB)),
        ([node(8), node(64, 512)], None, "auto", Share(9, 8, 0, 7 * GB)),
        ([node(8), node(64, 16)], None, "auto", Share(3, 8, 0, 7 * GB)),
        ([node(16, 64)], 4, "auto", Share(4, 4, 0, 7 * GB)),
        ([node(8), node(8, 4)], None, "auto", Share(1, 8, 0, 7 * GB)),
        ([node(64, 512, 8), node(64, 512, 8)], None, "auto", Share(16, 8, 1, 7 * GB)),
        ([node(64, 512, 8), node(8)], None, "cuda", Share(8, 8, 1, 7 * GB)),
        ([node(64, 512, 8), node(8)], None, "auto", Share(9, 8, 0, 7 * GB)),
        ([node(64, 512, 8)], None, "cpu", Share(1, 64, 0, 7 * GB)),
        ([node(2, 512, 4)], None, "cuda", Share(2, 1, 1, 7 * GB)),
    ],
)
def test_a_cluster_gets_as_many_models_as_its_nodes_have_room_for(
    nodes: list[Node], threads: int | None, device: str, expected: Share
) -> None:
    assert share_out(nodes, threads, device) == expected


def test_a_cluster_without_room_for_a_model_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"8 processors and 7\.0 GB, and Ray gives away 8 and 4\.0 GB on n"
    ):
        share_out([node(8, 4)], None, "auto")
    with pytest.raises(OutOfMemoryError, match="16 processors"):
        share_out([node(8)], 16, "auto")
    with pytest.raises(InvalidOptionError, match="threads"):
        share_out([node(8)], 0, "auto")


@pytest.mark.parametrize(
    ("given", "address", "inputs"),
    [
        (["--ray", "photos"], "local", ["photos"]),
        (["photos", "--ray"], "local", ["photos"]),
        (["--ray", "-n", "3", "photos"], "local", ["photos"]),
        (["--ray", "head:6379", "photos"], "head:6379", ["photos"]),
        (["photos", "--ray", "10.0.0.1:6379"], "10.0.0.1:6379", ["photos"]),
        (["--ray=auto", "photos"], "auto", ["photos"]),
        (["--ray", "auto"], "auto", []),
        (["--ray", "C:/photos"], "local", ["C:/photos"]),
        (["--", "--ray", "photos"], None, ["--ray", "photos"]),
        (["photos"], None, ["photos"]),
    ],
)
def test_an_address_behind_the_flag_is_one_and_an_input_is_an_input(
    given: list[str], address: str | None, inputs: Any
) -> None:
    params = typer.main.get_command(app).make_context("batch", given).params
    assert params["ray"] == address
    assert list(params["inputs"] or ()) == inputs


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = ayaedge("batch", CELLS, "--ray", "-o", tmp_path / "a.jsonl")
    assert done.returncode == 1
    assert 'pip install "ayaedge[ray]"' in " ".join(done.stderr.split())
    assert not (tmp_path / "a.jsonl").exists()


def test_nodes_know_a_bundle_by_its_whole_path_or_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert settled_bundle(None) is None
    assert settled_bundle("here") == str(tmp_path / "here")
    assert settled_bundle("elsewhere") == "elsewhere"
    assert settled_bundle("a/b") == str(tmp_path / "a" / "b")
