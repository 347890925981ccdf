"""`ayaedge export --merge` and what other commands know of a merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from language_models import noise, write_language_model

from ayaedge import read_bundle
from ayaedge.cli import merging
from ayaedge_export.merge.methods import METHODS
from command_line import ayaedge


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("base") / "aya-text", tiny, noise(1, 0.05))


def test_a_sweep_writes_a_bundle_for_each_weight(tiny: Path, base: Path, tmp_path: Path) -> None:
    result = ayaedge(
        "export", tiny, "-o", tmp_path / "m", "--vision", "fp32", "--merge", base, "--merge-weight", "0.25,0.5",
        "--merge-weight", "1", "--merge-method", "slerp",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m-0.25", "m-0.5", "m-1.0"}
    for weight in (0.25, 0.5, 1.0):
        merge = read_bundle(tmp_path / f"m-{weight}").manifest.source.merge
        assert merge is not None
        assert (merge.method, merge.weight, merge.base.name) == ("slerp", weight, "aya-text")
    assert (
        "merging 0.25 of tiny-aya-vision with aya-text (slerp); 4 added tokens that it lacks keep"
        in " ".join(result.stderr.split())
    )
    shown = ayaedge("info", tmp_path / "m-0.5").stdout
    assert "merged with   aya-text (slerp, weight 0.5)\n" in shown
    assert "licence       cc-by-nc-4.0 (aya-text)\n" in shown
    again = ayaedge("export", tiny, "-o", tmp_path / "m", "--merge", base, "--merge-weight", "0.75,0.5")
    assert again.returncode == 1
    assert "m-0.5 exists" in again.stderr
    assert not (tmp_path / "m-0.75").exists()  # all places are looked at before the first bundle is written


def test_a_merged_bundle_is_not_compared_with_the_checkpoint_alone(
    tiny: Path, base: Path, tmp_path: Path
) -> None:
    made = ayaedge("export", tiny, "-o", tmp_path / "b", "--merge", base, "--merge-weight", "0.5")
    assert made.returncode == 0, made.stderr
    result = ayaedge("verify", tmp_path / "b", "--against", tiny)
    assert result.returncode == 1
    assert "was merged with aya-text (linear, weight 0.5)" in " ".join(result.stderr.split())
    assert "--merge BASE" in result.stderr
    assert ayaedge("verify", tmp_path / "b").returncode == 0
    text = tmp_path / "text.txt"
    text.write_text("What number is at the bottom left?")
    figures = [
        json.loads(
            ayaedge(
                "eval", tmp_path / "b", "--against", tiny, "--text", text, "--no-images", "--json", *more
            ).stdout
        )["overall"]["mean_kl"]
        for more in ((), ("--merge", base))
    ]
    assert figures[0] > figures[1]


def test_a_plan_checks_the_merge_and_counts_its_bundles(tiny: Path, base: Path) -> None:
    result = ayaedge("plan", "--export", tiny, "--merge", base, "--merge-weight", "0.3,0.6", "--json")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["merge"] == {"method": "linear", "weight": 0.3}
    assert figures["bundles"] == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--merge", "BASE"], "--merge needs --merge-weight"),
        (["--merge-weight", "0.5"], "need --merge BASE"),
        (["--merge-method", "slerp"], "need --merge BASE"),
        (["--merge", "BASE", "--merge-weight", "half"], "not 'half'"),
        (["--merge", "BASE", "--merge-weight", "0.5,"], "not ''"),
        (["--merge", "BASE", "--merge-weight", "0.5,2"], "--merge-weight W"),
        (
            ["--merge", "BASE", "--merge-weight", "0.5", "--merge-method", "task-arithmetic"],
            "--merge-ancestor DIR",
        ),
        (["--merge", "BASE", "--merge-weight", "0.5", "--merge-ancestor", "BASE"], "only task-arithmetic"),
        (["--merge", "nothing", "--merge-weight", "0.5"], "no checkpoint directory at nothing"),
    ],
)
@pytest.mark.parametrize("command", ["export", "plan"])
def test_a_merge_that_cannot_be_made_is_refused_first(
    tiny: Path, base: Path, tmp_path: Path, command: str, options: list[str], says: str
) -> None:
    named = [str(base) if option == "BASE" else option for option in options]
    start = ["export", tiny] if command == "export" else ["plan", "--export", tiny]
    result = ayaedge(*start, "-o", tmp_path / "b", *named)
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_merge_is_planned_for_exports_alone(base: Path) -> None:
    result = ayaedge("plan", "--merge", base, "--merge-weight", "0.5")
    assert result.returncode == 1
    assert "add --export CHECKPOINT" in result.stderr
    result = ayaedge("verify", base, "--merge", base)
    assert result.returncode != 0


def test_the_option_offers_every_method() -> None:
    assert get_args(merging.MergeMethod) == METHODS
