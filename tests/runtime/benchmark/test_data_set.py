"""A local copy of a data set: what is in it, and what is said if it is not one."""

from __future__ import annotations

import io
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ayaedge import InvalidOptionError
from ayaedge.benchmark.data_set import Benchmark, DataSet
from ayaedge.benchmark.languages import CODES
from ayaedge.benchmark.questions import Question
from ayaedge.errors import MissingExtraError

FILE = "test-00000-of-00001.parquet"


def questions(directory: Path, name: Benchmark = "aya-vision-bench", **options: Any) -> list[Question]:
    return list(DataSet(name, directory, **options).questions())


def picture(side: int = 4) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as arrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def exam(**other: Any) -> dict[str, Any]:
    return {"language": "de", "question": "?", "options": ["a", "b"], "answer": 1, "image": None, **other}


def test_both_revisions_of_the_columns_give_the_same_questions(data: Path) -> None:
    older, newer = questions(data / "AyaVisionBench-older"), questions(data / "AyaVisionBench")
    assert [(one.language, one.text, one.images) for one in older] == [
        (one.language, one.text, one.images) for one in newer
    ]
    assert len(older) == 6 * 23
    assert {one.task for one in older} == {"color", "shape", "number", "count", "describe", "differences"}
    assert {one.task for one in newer} == {"one picture", "several pictures"}
    assert all(one.reference for one in newer)
    assert not any(one.reference for one in older)
    assert (older[0].key, newer[0].key) == ("arb_Arab/0", "arb_Arab/color_0")


def test_a_row_with_two_pictures_gives_both_in_their_order(data: Path) -> None:
    from pyarrow import parquet

    path = data / "AyaVisionBench-older" / "deu_Latn" / FILE
    (row,) = [row for row in parquet.read_table(path).to_pylist() if len(row["image"]) == 2]
    (one,) = [one for one in questions(path.parent) if one.task == "differences"]
    assert one.images == tuple(image["bytes"] for image in row["image"])
    assert one.images[0] != one.images[1]


def test_there_are_23_languages_and_each_is_found_by_its_folder_or_its_code(data: Path) -> None:
    copy = DataSet("m-wildvision", data / "m-WildVision")
    assert sorted(copy.languages) == sorted(CODES)
    assert copy.count == len(list(copy.questions())) == 6 * 23
    few = DataSet("m-wildvision", data / "m-WildVision", languages=["fa", "jpn_Jpan"], limit=2)
    found = list(few.questions())
    assert [one.language for one in found] == ["jpn_Jpan"] * 2 + ["pes_Arab"] * 2
    assert few.count == 4
    assert {one.language for one in questions(data / "m-WildVision" / "pes_Arab", "m-wildvision")} == {
        "pes_Arab"
    }


def test_a_language_that_is_not_there_is_named_with_those_that_are(data: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"nothing in 'sv', 'xx'; it has deu_Latn$"):
        questions(data / "AyaVisionBench" / "deu_Latn", languages=["sv", "de", "xx"])


def test_multiple_choice_has_its_options_and_its_pictures_from_the_archive(data: Path) -> None:
    found = questions(data / "kaleidoscope", "kaleidoscope")
    assert {one.language for one in found} == set(CODES.values())
    assert {one.task for one in found} == {"color", "shape", "number", "count", "greeting"}
    for one in found:
        assert len(one.options) == 4
        assert one.right in range(4)
        assert [data[:4] for data in one.images] == [b"\x89PNG"] * (one.task != "greeting")


@pytest.mark.parametrize("folder", ["", "final_data"])
def test_pictures_are_found_unpacked_too(folder: str, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(data / "kaleidoscope", tmp_path / "copy")
    packed = questions(copy, "kaleidoscope")
    with zipfile.ZipFile(copy / "data.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    shutil.copytree(tmp_path / "unpacked" / "final_data", copy / folder, dirs_exist_ok=True)
    (copy / "data.zip").unlink()
    assert questions(copy, "kaleidoscope") == packed


def test_pictures_may_stand_in_the_table_itself(tmp_path: Path) -> None:
    rows = [exam(image={"bytes": picture(side), "path": "x.png"}) for side in (4, 5)]
    write(tmp_path / "data" / "train.parquet", rows)
    assert [one.images for one in questions(tmp_path, "kaleidoscope")] == [(picture(4),), (picture(5),)]


@pytest.mark.parametrize("name", ["../outside.png", "/etc/passwd", "C:\\x.png", "a/../../outside.png"])
def test_a_table_names_no_picture_outside_of_its_directory(name: str, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(picture())
    write(tmp_path / "copy" / "data.parquet", [exam(image=name)])
    with pytest.raises(InvalidOptionError, match=r"row 1 of .* names a picture outside of its data set"):
        questions(tmp_path / "copy", "kaleidoscope")


def test_a_picture_that_is_missing_says_which_file_has_it(tmp_path: Path) -> None:
    write(tmp_path / "data.parquet", [exam(), exam(image="data/x.png")])
    with pytest.raises(
        InvalidOptionError, match=r"row 2 of .*data/x\.png, which is neither below .* data\.zip"
    ):
        questions(tmp_path, "kaleidoscope")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": 2}, "has 2 options, and none has the number 2"),
        ({"answer": None}, "has 2 options, and none has the number None"),
        ({"options": None}, "has no list of options"),
        ({"question": " "}, "has no question"),
        ({"image": 5}, "has a picture of the type int"),
    ],
)
def test_a_row_that_makes_no_sense_is_named(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "data.parquet", [exam(**row)])
    with pytest.raises(InvalidOptionError, match=f"row 1 of {path} {message}"):
        questions(tmp_path, "kaleidoscope")


def test_the_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path / "deu_Latn" / FILE, [{"image": [], "index": 1, "title": "x"}])
    write(tmp_path / "fra_Latn" / FILE, [{"image": [], "index": 1, "prompt": "x"}])
    write(tmp_path / "other" / FILE, [{"image": [], "prompt": "x"}])
    for name, content in (
        ("ita_Latn", b"version https://git-lfs.github.com/spec/v1\n"),
        ("kor_Hang", b"PAR1 no"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).write_bytes(content)
    with pytest.raises(InvalidOptionError) as caught:
        questions(tmp_path)
    _, *faults = str(caught.value).splitlines()
    assert [name for name in ("deu_Latn", "ita_Latn", "kor_Hang", "other") if f"{name}/{FILE}" in str(faults)] == [
        "deu_Latn", "ita_Latn", "kor_Hang", "other"
    ]  # fmt: skip
    assert len(faults) == 4
    assert "it has the columns image, index, title, and none that is called question or prompt" in faults[0]
    assert "pointer of Git LFS" in faults[1]
    assert "none that is called language" in faults[3]


def test_a_directory_without_tables_is_no_copy(tmp_path: Path) -> None:
    with pytest.raises(InvalidOptionError, match=r"no \.parquet in .* must hold a copy of m-wildvision"):
        questions(tmp_path, "m-wildvision")


def test_rows_with_the_same_index_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path / "deu_Latn" / FILE, [{"image": None, "index": 3, "question": text} for text in "abc"])
    assert [one.key for one in questions(tmp_path)] == ["deu_Latn/3", "deu_Latn/3#2", "deu_Latn/3#3"]


def test_without_arrow_the_extra_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"ayaedge\[parquet\]"):
        questions(data / "AyaVisionBench")
