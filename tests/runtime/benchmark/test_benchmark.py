"""The command, with the small model that answers what it was trained for: figures that are near what is known of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ayaedge import AyaVision, Bundle
from ayaedge.benchmark.data_set import DataSet
from ayaedge.bundle import demo_bundle
from command_line import Finished, ayaedge
from served import until

TEXTS = ["--options", "texts"]
FILE = "test-00000-of-00001.parquet"


def run(name: str, directory: Path, output: Path, *more: str | Path) -> Finished:
    return ayaedge("benchmark", name, "--data", directory, "-t", "1", "-o", output, *more)


def figures(output: Path, model: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.read_text("utf-8"))["models"][model]
    return found


def rows(output: Path) -> list[dict[str, Any]]:
    path = output.with_name(f"{output.stem}.answers.jsonl")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def answered(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Multiple choice in all languages, answered by the demonstration model: its figures."""
    output = tmp_path_factory.mktemp("answered") / "out.json"
    finished = run(
        "kaleidoscope",
        data / "kaleidoscope",
        output,
        *TEXTS,
        "--limit",
        "3",
        "--plot",
        output.with_suffix(".png"),
    )
    assert finished.returncode == 0, finished.stderr
    return output


def test_the_exact_score_is_near_what_is_known_of_the_model(answered: Path) -> None:
    found = figures(answered)
    assert found["all"]["questions"] == 3 * 23
    assert found["all"]["right"] >= 0.93  # 99 % of held-out questions, README
    assert len(found["languages"]) == 23
    assert found["all"]["right_low"] < found["all"]["right"] <= found["all"]["right_high"]


def test_the_score_falls_where_another_option_is_right(answered: Path, data: Path, tmp_path: Path) -> None:
    """The answers are those that are known: nothing is asked again."""
    import pyarrow as arrow
    from pyarrow import parquet

    copy = tmp_path / "copy"
    (copy / "data").mkdir(parents=True)
    (copy / "data.zip").write_bytes((data / "kaleidoscope" / "data.zip").read_bytes())
    table = parquet.read_table(data / "kaleidoscope" / "data" / "train-00000-of-00001.parquet").to_pylist()
    turned = [{**row, "answer": (row["answer"] + 1) % 4} for row in table]
    parquet.write_table(arrow.Table.from_pylist(turned), copy / "data" / "train.parquet")
    output = tmp_path / "out.json"
    output.with_name("out.answers.jsonl").write_bytes(answered.with_name("out.answers.jsonl").read_bytes())
    assert run("kaleidoscope", copy, output, *TEXTS, "--limit", "3").returncode == 0
    assert len(rows(output)) == len(rows(answered))
    assert figures(output)["all"]["right"] <= 0.07
    assert figures(output)["all"]["no_choice"] == figures(answered)["all"]["no_choice"]


def test_letters_that_a_model_was_not_trained_for_are_no_choice(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    finished = run(
        "kaleidoscope", data / "kaleidoscope", output, "--languages", "de,ja", "--limit", "2", "-n", "8"
    )
    assert finished.returncode == 0, finished.stderr
    assert figures(output)["all"]["no_choice"] >= 0.5
    assert figures(output)["all"]["right"] <= 0.5


def test_a_chart_by_language_is_drawn(answered: Path) -> None:
    with Image.open(answered.with_suffix(".png")) as chart:
        assert chart.format == "PNG"
        assert chart.height > 23 * 20


def test_a_row_with_two_pictures_is_asked_with_both(
    data: Path, tmp_path: Path, demo_model: AyaVision
) -> None:
    directory, output = data / "AyaVisionBench-older" / "ita_Latn", tmp_path / "out.json"
    assert run("aya-vision-bench", directory, output, "-n", "24").returncode == 0
    (two,) = [one for one in DataSet("aya-vision-bench", directory).questions() if one.task == "differences"]
    (row,) = [row for row in rows(output) if row["custom_id"] == two.key]
    answer = demo_model.ask(two.text, images=list(two.images), max_tokens=24)
    alone = demo_model.ask(two.text, images=two.images[0], max_tokens=24)
    assert row["answer"] == answer.text
    assert row["usage"]["prompt_tokens"] == answer.usage.prompt_tokens > alone.usage.prompt_tokens
    assert set(figures(output)["tasks"]) == {"color", "shape", "number", "count", "describe", "differences"}


def test_answers_are_compared_with_a_models_in_full_precision(
    data: Path, tmp_path: Path, exact_bundle: Bundle
) -> None:
    output = tmp_path / "out.json"
    finished = run(
        "aya-vision-bench", data / "AyaVisionBench", output, "--languages", "de,el,zh", "-n", "48",
        "-m", demo_bundle(), "-m", exact_bundle.directory, "--against", exact_bundle.directory,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    ours, itself = figures(output)["all"], figures(output, 1)["all"]
    assert (itself["equal"], itself["equal_beginning_share"], itself["chrf"]) == (1, 1, 100)
    assert itself["kl"] < 1e-4 < ours["kl"] < 0.1  # the candidate's KV cache is f16, as users run it
    assert ours["equal"] >= 0.7
    assert ours["top1"] > 0.95
    assert ours["language_kept"] == ours["language_kept_against"] >= 0.8
    assert ours["reference_chrf"] > 50
    tasks = figures(output)["tasks"]
    assert tasks["one picture"]["reference_equal"] >= 0.8
    assert len(rows(output)) == 2 * 18  # the exact one is asked once, though it is named twice
    assert finished.stdout.startswith("aya-vision-bench")
    assert all(word in finished.stdout for word in ("demo", "exact", "deu_Latn", "mean", "KL"))


def test_what_was_compared_is_not_compared_again(
    data: Path, tmp_path: Path, exact_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.json"
    asked = [
        "m-wildvision", data / "m-WildVision" / "fra_Latn", output, "-n", "24", "--against", exact_bundle.directory,
    ]  # fmt: skip
    assert run(*asked, "--limit", "2").returncode == 0
    before = figures(output)
    kept = output.with_name("out.kl.jsonl").read_text("utf-8")
    assert run(*asked, "--limit", "2").returncode == 0
    assert figures(output) == before
    assert run(*asked, "--limit", "3").returncode == 0
    after = output.with_name("out.kl.jsonl").read_text("utf-8")
    assert after.startswith(kept)
    assert (len(kept.splitlines()), len(after.splitlines())) == (1 + 2, 1 + 3)
    assert len(rows(output)) == 2 * 3


def test_a_checkpoint_in_transformers_answers_as_its_exact_bundle(
    data: Path, tmp_path: Path, exact_bundle: Bundle, tiny: Path
) -> None:
    output = tmp_path / "out.json"
    finished = run(
        "aya-vision-bench", data / "AyaVisionBench-older" / "tur_Latn", output, "-n", "24",
        "-m", exact_bundle.directory, "--against", tiny, "--limit", "4",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    found = figures(output)["all"]
    assert (found["questions"], found["equal"]) == (4, 1)
    assert found["kl"] < 1e-3
    usages = [row["usage"] for row in rows(output)]
    assert [one["prompt_tokens"] for one in usages[:4]] == [one["prompt_tokens"] for one in usages[4:]]


def test_a_picture_that_cannot_be_read_is_a_question_that_failed(data: Path, tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    path, output = tmp_path / "deu_Latn" / FILE, tmp_path / "out.json"
    table = parquet.read_table(data / "m-WildVision" / "deu_Latn" / FILE)
    values = table.to_pylist()
    values[1]["image"][0]["bytes"] = b"no picture"
    path.parent.mkdir()
    parquet.write_table(arrow.Table.from_pylist(values, schema=table.schema), path)
    finished = run("m-wildvision", tmp_path, output, "-n", "8")
    assert finished.returncode == 1
    assert "deu_Latn/1: ImageError" in finished.stderr
    assert (figures(output)["all"]["failed"], figures(output)["all"]["questions"]) == (1, 6)


def test_what_would_fail_after_hours_fails_at_once(
    data: Path,
    tmp_path: Path,
    tiny: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    several = [tmp_path_factory.mktemp("several") / str(number) for number in range(5)]
    for path in several:
        path.symlink_to(demo_bundle(), target_is_directory=True)

    def fails(message: str, *more: str | Path) -> None:
        finished = run("m-wildvision", data / "m-WildVision", tmp_path / "out.json", *more)
        assert finished.returncode == 1
        assert message in " ".join(finished.stderr.split())
        assert list(tmp_path.iterdir()) == []

    fails("there is no bundle at", "-m", tmp_path / "nothing")
    fails("names x, y more than once", *[part for name in "xyxyz" for part in ("-m", name)])
    compared = ["--plot", tmp_path / "x.png", "--against", demo_bundle()]
    named = [part for path in several for part in ("-m", path)]
    fails("a chart shows at most 4 models, not 5", *compared, *named)
    fails("--max-tiles is for bundles", "--max-tiles", "1", "--against", tiny)
    fails("nothing to draw: this data set has no right answers", "--plot", tmp_path / "x.png")
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    fails("ayaedge[benchmark]", "--against", demo_bundle())
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    fails("ayaedge[parquet]")


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    journal = tmp_path / "out.answers.jsonl"
    command = [
        sys.executable, "-m", "ayaedge", "benchmark", "kaleidoscope", "--data", str(data / "kaleidoscope"), "-t", "1",
        *TEXTS, "-o", str(output),
    ]  # fmt: skip
    for least in (5, 20, 60):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            until(lambda least=least: journal.exists() and journal.read_bytes().count(b"\n") >= least)
            os.kill(process.pid, signal.SIGKILL)
    assert not output.exists()
    assert run("kaleidoscope", data / "kaleidoscope", output, *TEXTS).returncode == 0
    names = [row["custom_id"] for row in rows(output)]
    assert len(names) == len(set(names)) == 5 * 23
    assert figures(output)["all"]["right"] >= 0.93


def test_the_data_of_the_generator_is_what_it_says(data: Path) -> None:
    from pyarrow import parquet

    with zipfile.ZipFile(data / "kaleidoscope" / "data.zip") as archive:
        assert all(name.startswith("final_data/data/") for name in archive.namelist())
    names = {
        "AyaVisionBench-older": {
            "image",
            "image_source",
            "image_source_category",
            "index",
            "question",
            "language",
        },
        "AyaVisionBench": {"image", "index", "prompt", "reference", "language"},
        "m-WildVision": {"image", "question", "question_id", "language", "index"},
    }
    for folder, columns in names.items():
        assert set(parquet.read_schema(data / folder / "deu_Latn" / FILE).names) == columns
