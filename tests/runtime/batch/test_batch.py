"""Many images: rows that are there once and whole, whatever happens while they are written."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ayaedge import (
    AyaVision,
    BackendError,
    BatchError,
    BatchItem,
    BatchRow,
    ClosedError,
    InvalidOptionError,
    Page,
)
from ayaedge.batch.items import find_items, listed
from ayaedge.batch.journal import Journal
from ayaedge.batch.outputs import write_sidecar
from ayaedge.batch.runner import BatchOptions, Work, run_batch
from ayaedge.options import answer_options
from command_line import ayaedge
from served import CELLS, QUESTION, data_url, until

ASKED = ["-p", "What is {name}?", "-n", "4", "--max-tiles", "1", "-t", "1"]
COLORS = {"red": (200, 30, 40), "green": (30, 160, 60), "blue": (30, 80, 200)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three small images, and one more in a folder within."""
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for number, color in enumerate(COLORS.values()):
        Image.new("RGB", (20, 20), color).save(root / f"{number}.png")
    Image.new("RGB", (20, 20)).save(root / "more" / "10.png")
    (root / "notes.md").write_text("no image")
    return root


class Said:
    """An answer that is there, as a request in OpenAI's form has it."""

    def __init__(self, text: str | BaseException):
        self._text = text

    def result(self) -> Any:
        if isinstance(self._text, BaseException):
            raise self._text
        choice = {"message": {"content": self._text}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}

    def cancel(self) -> None: ...


class Asking:
    """Says what it was asked, or fails as it is told; a fake of the model's three lines, so that failures are exact."""

    def __init__(self, *failures: BaseException) -> None:
        self.asked: list[str] = []
        self.failures = list(failures)

    def work(self, prompt: str = "what?", **options: Any) -> Work:
        return Work(b"bundle", prompt, None, answer_options(**options), self.ask, lambda request: {})

    def ask(self, question: str, image: Any) -> Said:
        self.asked.append(question)
        return Said(self.failures.pop(0) if self.failures else f"{question}!")


def rows_of(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text("utf-8").splitlines()]


def run(
    items: Any, asking: Asking, journal: Path | None, prompt: str = "what?", **more: Any
) -> list[BatchRow]:
    return list(run_batch(items, asking.work(prompt), journal, BatchOptions(**more)))


def test_rows_have_the_answers_of_asking_one_by_one(demo_model: AyaVision, tmp_path: Path) -> None:
    items = [CELLS, Page(CELLS, 1), CELLS.with_name("one-number.png")]
    rows = list(demo_model.batch(items, QUESTION, journal=tmp_path / "j.jsonl", max_tokens=4, max_tiles=1))
    for row, item in zip(rows, items, strict=True):
        answer = demo_model.ask(QUESTION, images=item, max_tokens=4, max_tiles=1)
        assert (row.answer, row.stop_reason) == (answer.text, answer.stop_reason)
        assert row.usage["prompt_tokens"] == answer.usage.prompt_tokens
    assert [row.page for row in rows] == [None, 1, None]
    assert rows == list(
        demo_model.batch(items, QUESTION, journal=tmp_path / "j.jsonl", max_tokens=4, max_tiles=1)
    )


def test_what_is_known_is_not_asked_again_and_the_input_may_grow(folder: Path, tmp_path: Path) -> None:
    journal, images = tmp_path / "j.jsonl", sorted(folder.glob("*.png"))
    first, second = Asking(), Asking()
    before = run(images[:2], first, journal)
    assert run(images, second, journal)[:2] == before
    assert (len(first.asked), len(second.asked), len(rows_of(journal))) == (2, 1, 3)
    Image.new("RGB", (9, 9)).save(images[0])  # another image under the same name
    run(images, third := Asking(), journal)
    assert len(third.asked) == 1


def test_another_prompt_form_sampling_or_bundle_is_other_work(folder: Path, tmp_path: Path) -> None:
    asking, image = Asking(), folder / "0.png"
    works = [
        asking.work(), asking.work("why?"), asking.work(max_tokens=3), asking.work(temperature=0.5, seed=1),
        asking.work(choices=["a", "b"]), asking.work(max_tiles=2),
        Work(**{**vars(asking.work()), "identity": b"other"}),
        Work(**{**vars(asking.work()), "system": "briefly"}),
    ]  # fmt: skip
    for work in works:
        list(run_batch([image], work, tmp_path / "j.jsonl", BatchOptions()))
    assert len(asking.asked) == len(works)
    for work in works:
        list(run_batch([image], work, tmp_path / "j.jsonl", BatchOptions()))
    assert len(asking.asked) == len(works)


def test_equal_images_are_computed_once_and_have_a_row_each(folder: Path, tmp_path: Path) -> None:
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    images = [folder / "0.png", folder / "copy.png", folder / "1.png"]
    asking = Asking()
    rows = run(images, asking, tmp_path / "j.jsonl")
    assert len(asking.asked) == 2
    assert [row.answer for row in rows] == ["what?!"] * 3
    assert rows[1].same_as == str(images[0])
    run(images, asking, tmp_path / "j.jsonl")
    assert len(rows_of(tmp_path / "j.jsonl")) == 3
    run([images[1]], asking, tmp_path / "j.jsonl", "the name is {name}")
    run([images[0]], asking, tmp_path / "j.jsonl", "the name is {name}")
    assert asking.asked[-2:] == ["the name is copy.png", "the name is 0.png"]


def test_variables_of_the_prompt_are_those_of_the_file(folder: Path) -> None:
    item = BatchItem(Page(folder / "more" / "10.png", 3))
    assert item.question('{name} {stem} {directory} {page} {other} {"a": 1}') == (
        '10.png 10 more 3 {other} {"a": 1}'
    )
    assert BatchItem(b"bytes").question("{name}{page}?") == "?"
    assert BatchItem("a.png", prompt="own {stem}").question("x") == "own a"


def test_a_row_that_failed_is_tried_again_and_an_answer_wins(folder: Path, tmp_path: Path) -> None:
    journal, image = tmp_path / "j.jsonl", folder / "0.png"
    lost = BackendError("it went wrong")
    (row,) = run([image], Asking(lost), journal)
    assert (row.error, row.attempts, row.answer) == (None, 2, "what?!")
    (row,) = run([folder / "1.png"], Asking(lost, lost, lost), journal, retries=1, max_error_rate=1)
    assert (row.error, row.attempts) == ("BackendError: it went wrong", 2)
    (row,) = run([folder / "1.png"], asking := Asking(), journal)
    assert (row.error, len(asking.asked)) == (None, 1)
    (again,) = run([folder / "1.png"], asking, journal)
    assert again == row
    with Journal(journal) as kept:
        kept.append(BatchRow(**{**vars(row), "error": "later", "answer": None}))
    (again,) = run([folder / "1.png"], asking, journal)
    assert again == row


def test_an_image_that_cannot_be_read_is_a_row_and_no_end(folder: Path, tmp_path: Path) -> None:
    rows = run([folder / "none.png", folder / "0.png"], Asking(), tmp_path / "j.jsonl")
    assert "there is no image at" in str(rows[0].error)
    assert rows[1].answer == "what?!"


def test_too_many_failures_stop_a_batch_with_the_reason(folder: Path, tmp_path: Path) -> None:
    images = [folder / f"none{number}.png" for number in range(40)]
    with pytest.raises(BatchError, match=r"10 of 10 rows failed.*max_error_rate.*there is no image at"):
        run(images, Asking(), tmp_path / "j.jsonl")
    assert len(rows_of(tmp_path / "j.jsonl")) == 10
    assert len(run(images, Asking(), None, max_error_rate=1)) == 40


def test_a_model_that_is_gone_ends_a_batch(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ClosedError):
        run([folder / "0.png"], Asking(ClosedError()), tmp_path / "j.jsonl")
    assert rows_of(tmp_path / "j.jsonl") == []


def test_half_a_line_is_taken_away_and_computed_again(folder: Path, tmp_path: Path) -> None:
    journal, images = tmp_path / "j.jsonl", sorted(folder.glob("*.png"))
    run(images, Asking(), journal)
    whole = journal.read_bytes()
    for cut in (1, 2, 40, len(whole.splitlines()[-1])):
        journal.write_bytes(whole[:-cut])
        run(images, asking := Asking(), journal)
        assert len(asking.asked) == 1
        assert [row["path"] for row in rows_of(journal)] == [str(image) for image in images]


@pytest.mark.parametrize("line", ['{"custom_id": "x"}', "no json", "[]", '{"fingerprint": 5}'])
def test_a_file_that_is_no_journal_is_not_appended_to(line: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(line + "\n")
    with pytest.raises(InvalidOptionError, match=r"line 1 of .*mine.jsonl is no row of a batch"):
        run([folder / "0.png"], Asking(), tmp_path / "mine.jsonl")
    assert (tmp_path / "mine.jsonl").read_text() == line + "\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows lets two programs append")
def test_two_batches_do_not_write_into_one_file(folder: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl"), pytest.raises(InvalidOptionError, match="another batch writes into"):
        run([folder / "0.png"], Asking(), tmp_path / "j.jsonl")


def test_inputs_are_folders_patterns_lists_and_documents(folder: Path, tmp_path: Path) -> None:
    def names(*inputs: str, **more: Any) -> list[str]:
        return [f"{item.file and item.file.name}:{item.page}" for item in find_items(inputs, **more)]

    Image.new("RGB", (20, 20)).save(folder / "a.pdf", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert names(str(folder)) == ["0.png:None", "1.png:None", "2.png:None", "a.pdf:1", "a.pdf:2"]
    assert names(str(folder / "more"), str(folder / "0.png")) == ["10.png:None", "0.png:None"]
    assert "10.png:None" in names(str(folder), recursive=True)
    assert names(str(folder / "[01].*")) == ["0.png:None", "1.png:None"]
    assert names(f"{folder}/a.pdf#page=2") == ["a.pdf:2"]
    (tmp_path / "list").write_text(f"\ufeff# my images\n{folder / '2.png'}\n\n{folder / 'more'}\n", "utf-8")
    assert names(*listed(tmp_path / "list")) == ["2.png:None", "10.png:None"]
    with pytest.raises(InvalidOptionError, match="neither a file nor a folder"):
        names(str(tmp_path / "nowhere"))


def test_pages_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        Image.new("L", (8, 8)).save(tmp_path / f"page{number}.png")
    assert [str(item.image)[-6:-4] for item in find_items([str(tmp_path)])] == ["e1", "e9", "10"]


def test_requests_of_openais_batch_files_are_answered_in_openais_form(tmp_path: Path) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": data_url(CELLS)}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"model": "x", "messages": [{"role": "user", "content": content}], "max_tokens": 6}
    request = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
    bad = {**request, "custom_id": "two", "body": {"messages": []}}
    (tmp_path / "in.jsonl").write_text(json.dumps(request) + "\n\n" + json.dumps(bad) + "\n")
    done = ayaedge(
        "batch", tmp_path / "in.jsonl", "-o", tmp_path / "rows.jsonl", "--openai", tmp_path / "out.jsonl"
    )
    assert done.returncode == 1, done.stderr
    first, second = rows_of(tmp_path / "out.jsonl")
    assert (first["custom_id"], first["error"], first["response"]["status_code"]) == ("one", None, 200)
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "2675"
    assert second["custom_id"] == "two"
    assert "at least one message" in second["error"]["message"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not valid JSON"),
        ("{}", "custom_id, method, url and body"),
        ('{"body": {}, "url": "/v1/embeddings"}', "must be a POST to /v1/chat/completions"),
        ('{"body": {}, "url": "/v1/chat/completions"}', "has no custom_id"),
    ],
)
def test_what_is_no_request_is_refused_with_its_line(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(line)
    with pytest.raises(InvalidOptionError, match=f"line 1 of .*{says}"):
        list(find_items([str(tmp_path / "in.jsonl")]))


def test_answers_lie_next_to_their_images_and_in_tables(folder: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    arguments = [
        "batch", folder, "-o", tmp_path / "rows.jsonl", "-p", "What color?", "-n", "6", "--max-tiles", "1",
        "--txt", "--json",
        "--csv", tmp_path / "a.csv", "--parquet", tmp_path / "a.parquet",
    ]  # fmt: skip
    (folder / "broken.png").write_bytes(b"x")
    done = ayaedge(*arguments)
    assert done.returncode == 1
    assert "3 answered" in done.stderr
    assert "1 failed" in done.stderr
    rows = {Path(row["path"]).name: row for row in rows_of(tmp_path / "rows.jsonl")}
    assert (folder / "0.txt").read_text("utf-8") == rows["0.png"]["answer"] + "\n"
    assert json.loads((folder / "1.json").read_text("utf-8")) == rows["1.png"]
    assert not (folder / "broken.txt").exists()
    for _ in range(2):  # also where all files are there already
        table = list(csv.DictReader((tmp_path / "a.csv").read_text("utf-8-sig").splitlines()))
        assert [Path(line["path"]).name for line in table] == ["0.png", "1.png", "2.png", "broken.png"]
        assert (
            pyarrow.parquet.read_table(tmp_path / "a.parquet")["answer"].to_pylist()[0] == table[0]["answer"]
        )
        ayaedge(*arguments)
    (folder / "3.png").write_bytes(CELLS.read_bytes())
    (folder / "3.txt").write_text("mine")
    (folder / "3.json").write_text("mine")
    done = ayaedge(*arguments)
    assert "1 had their files already" in done.stderr
    assert (folder / "3.txt").read_text() == "mine"


def test_texts_that_are_there_are_overwritten_or_gone_on_with(tmp_path: Path) -> None:
    path, row = tmp_path / "a.txt", BatchRow("a.png", None, None, "x", "y", "?", answer="new")
    for existing, before, after in (
        ("overwrite", "old", "new\n"), ("append", "old", "old\nnew\n"), ("append", "old\nnew\n", "old\nnew\n"),
        ("append", "anew\n", "anew\nnew\n"), ("append", "", "new\n"),
    ):  # fmt: skip
        path.write_text(before)
        write_sidecar(path, row, existing)  # type: ignore[arg-type]
        assert path.read_text() == after
    write_sidecar(tmp_path / "b.txt", BatchRow(**{**vars(row), "error": "no"}), "overwrite")
    assert not (tmp_path / "b.txt").exists()


def test_a_table_computes_nothing(tmp_path: Path) -> None:
    from ayaedge.batch.outputs import write_csv

    write_csv(tmp_path / "a.csv", [BatchRow("a", None, None, "x", "y", "?", answer="=HYPERLINK(1)")])
    (line,) = csv.DictReader((tmp_path / "a.csv").read_text("utf-8-sig").splitlines())
    assert line["answer"] == "'=HYPERLINK(1)"


def test_answers_under_a_schema_are_objects_and_cut_off_ones_failures(
    demo_model: AyaVision, folder: Path
) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    (row,) = demo_model.batch([CELLS], QUESTION, response_format=form, max_tiles=1, max_tokens=60)
    assert isinstance(row.object["n"], int)
    (row,) = demo_model.batch([CELLS], QUESTION, response_format=form, max_tiles=1, max_tokens=2)
    assert "TruncatedError: the answer was cut off" in str(row.error)


def test_a_dry_run_says_what_a_batch_takes_and_loads_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(AyaVision, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (folder / "broken.png").write_bytes(b"x")
    done = ayaedge("batch", folder, "--dry-run", "--max-tiles", "1")
    assert done.returncode == 0, done.stderr
    assert "3 rows, 3 tiles, " in done.stdout
    assert "1 cannot be read" in done.stdout
    assert "hours" in done.stdout
    assert not (tmp_path / "batch.jsonl").exists()


def test_invalid_options_are_refused_before_anything_is_asked(demo_model: AyaVision, folder: Path) -> None:
    for wrong in ({"retries": -1}, {"max_error_rate": 2}, {"temperature": -1}, {"overwrite": "yes"}):
        with pytest.raises(InvalidOptionError):
            demo_model.batch([folder / "0.png"], "x", **wrong)  # type: ignore[arg-type]


def kill_some_runs(times: int, most: int, folder: Path, journal: Path) -> None:
    """Runs of the command that are killed at random moments, each within its first `most` rows."""
    chance, lines = random.Random(7), 0
    for _ in range(times):
        command = [sys.executable, "-m", "ayaedge", "batch", str(folder), "-o", str(journal), *ASKED, "--txt"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = lines + chance.randint(1, most)
        until(lambda wanted=wanted: count_lines(journal) >= wanted)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.02))  # two rows
        process.kill()
        assert process.wait() == -signal.SIGKILL
        lines = count_lines(journal)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def many(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (20, 20), (number % 256, 90, number // 256)).save(folder / f"{number}.png")


def check_survives(times: int, count: int, tmp_path: Path) -> None:
    for name in ("killed", "calm"):
        many(tmp_path / name, count)
    kill_some_runs(times, count // times // 2, tmp_path / "killed", tmp_path / "killed.jsonl")
    assert count_lines(tmp_path / "killed.jsonl") < count, "the last run was not killed in the middle"
    for name in ("killed", "calm"):
        arguments = ["batch", tmp_path / name, "-o", tmp_path / f"{name}.jsonl", *ASKED]
        done = ayaedge(*arguments, "--txt", "--existing", "overwrite")
        assert done.returncode == 0, done.stderr
    rows, expected = (
        sorted(
            (Path(row["path"]).name, row["answer"], row["fingerprint"]) for row in rows_of(tmp_path / name)
        )
        for name in ("killed.jsonl", "calm.jsonl")
    )
    assert rows == expected
    for number in range(count):
        texts = [(tmp_path / name / f"{number}.txt").read_text("utf-8") for name in ("killed", "calm")]
        assert texts[0] == texts[1]


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_batch_that_is_killed_goes_on_with_rows_that_are_whole_and_there_once(tmp_path: Path) -> None:
    check_survives(2, 48, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_batch_that_is_killed_thirty_times_goes_on(tmp_path: Path) -> None:
    check_survives(30, 360, tmp_path)
