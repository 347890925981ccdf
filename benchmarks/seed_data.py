"""Small data sets of the layouts of the seed's benchmarks, from the demonstration model's scenes.

`python benchmarks/seed_data.py DIR [--rows N]` writes DIR/AyaVisionBench, DIR/AyaVisionBench-older (the columns of its
earlier revision), DIR/m-WildVision and DIR/kaleidoscope; needs the extra `parquet`. `ayaedge benchmark` reads them as
it reads the real ones, and the demonstration model can answer them. Columns, folders, types and archives are those of
the real data sets; pictures and questions are not.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "train_tiny"))

import scenes

from ayaedge.benchmark.languages import CODES

SEED = 20251
FILE = "test-00000-of-00001.parquet"
IMAGES, TEXT, NUMBER, TEXTS = "images", "string", "int64", "strings"
"""Types of columns; see `arrow_type`."""
OLDER = {
    "image": IMAGES, "image_source": TEXT, "image_source_category": TEXT, "index": NUMBER, "question": TEXT,
    "language": TEXT,
}  # fmt: skip
NEWER = {"index": TEXT, "image": IMAGES, "prompt": TEXT, "reference": TEXT, "language": TEXT}
WILD = {"image": IMAGES, "question": TEXT, "question_id": TEXT, "language": TEXT, "index": NUMBER}
EXAM = {
    "language": TEXT, "country": TEXT, "file_name": TEXT, "source": TEXT, "license": TEXT, "level": TEXT,
    "category_en": TEXT, "category_original_lang": TEXT, "original_question_num": TEXT, "question": TEXT,
    "options": TEXTS, "answer": NUMBER, "image_png": TEXT, "image_information": TEXT, "image_type": TEXT,
    "parallel_question_id": TEXT, "image": TEXT, "general_category_en": TEXT,
}  # fmt: skip
EXAM_FOLDER = "data/Scenes_Multimodal/images"
WORDS: dict[str, Any] = json.loads(
    unicodedata.normalize("NFC", Path(scenes.__file__).with_name("languages.json").read_text("utf-8"))
)["languages"]


@dataclass(frozen=True)
class Row:
    """A question about one or more pictures."""

    task: str
    pictures: tuple[bytes, ...]
    question: str
    answer: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=3, help="of each task and language")
    given = parser.parse_args()
    write_all(given.directory, given.rows)


def write_all(directory: Path, rows: int) -> None:
    """Write the four data sets, with so many rows of each task and language."""
    drawn = {code: list(draw_rows(code, rows)) for code in CODES.values()}
    for folder, code in CODES.items():
        write_language(directory, folder, drawn[code])
    write_exams(directory / "kaleidoscope", {code: list(draw_rows(code, rows, "exam")) for code in drawn})


def draw_rows(code: str, count: int, of: str = "open") -> Iterator[Row]:
    """So many questions of each task, about scenes whose numbers the model has never seen."""
    rng = random.Random(f"{SEED} {of} {code}")
    for task in scenes.TASKS:
        for _ in range(count):
            scene = draw_scene(rng, task)
            question, answer = scenes.ask(scene, code, task, rng)
            yield Row(task, (png(scene),), question, answer)
    if of == "open":
        for _ in range(count):
            pair = [draw_scene(rng, "describe") for _ in range(2)]
            answers = [scenes.ask(scene, code, "describe", rng) for scene in pair]
            yield Row(
                "differences",
                tuple(map(png, pair)),
                answers[0][0],
                "\n".join(answer for _, answer in answers),
            )


def draw_scene(rng: random.Random, task: scenes.Task) -> scenes.Scene:
    while True:
        layout = rng.choices(scenes.LAYOUTS, scenes.HELD_OUT_WEIGHTS)[0]
        scene = scenes.make_scene(layout, rng, held_out=True)
        if task in scenes.possible_tasks(scene):
            return scene


def png(scene: scenes.Scene) -> bytes:
    stream = io.BytesIO()
    scene.picture.save(stream, "PNG")
    return stream.getvalue()


def write_language(directory: Path, folder: str, rows: list[Row]) -> None:
    """One language of the three data sets that have a folder for each."""
    images = [[{"bytes": data, "path": None} for data in row.pictures] for row in rows]
    shared = {"image": images, "language": [folder] * len(rows)}
    questions, numbers = [row.question for row in rows], list(range(len(rows)))
    write(directory / "AyaVisionBench-older" / folder / FILE, OLDER, {
        **shared, "image_source": ["scenes"] * len(rows), "image_source_category": [row.task for row in rows],
        "index": numbers, "question": questions,
    })  # fmt: skip
    write(directory / "AyaVisionBench" / folder / FILE, NEWER, {
        **shared, "index": [f"{row.task}_{number}" for number, row in enumerate(rows)], "prompt": questions,
        "reference": [row.answer for row in rows],
    })  # fmt: skip
    write(directory / "m-WildVision" / folder / FILE, WILD, {
        **shared, "question": questions, "question_id": [f"q{number}" for number in numbers], "index": numbers,
    })  # fmt: skip


def write_exams(directory: Path, drawn: dict[str, list[Row]]) -> None:
    """Multiple choice in one file for all languages, its pictures in an archive next to it."""
    table: list[dict[str, Any]] = []
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(directory / "data.zip", "w") as archive:
        for code, rows in drawn.items():
            rng = random.Random(f"{SEED} options {code}")
            for number, row in enumerate(row for row in rows if row.task != "describe"):
                name = f"{EXAM_FOLDER}/{code}_{number}.png"
                archive.writestr(f"final_data/{name}", row.pictures[0])
                table.append(exam(code, number, row, options(row, code, rng), name))
            question, answer = scenes.greeting(code)
            others = [scenes.greeting(other)[1] for other in rng.sample(sorted(set(drawn) - {code}), 3)]
            choices = shuffled([answer, *others], rng)
            table.append(exam(code, len(rows), Row("greeting", (), question, answer), choices, None))
    columns = {name: [row[name] for row in table] for name in EXAM}
    write(directory / "data" / "train-00000-of-00001.parquet", EXAM, columns)


def options(row: Row, code: str, rng: random.Random) -> list[str]:
    """The right answer among three that are wrong."""
    known: list[str] = WORDS[code].get({"color": "colors", "shape": "shapes"}.get(row.task, ""), [])
    if row.task == "number":
        known = [scenes.draw_number(rng, held_out=True) for _ in range(8)]
    elif row.task == "count":
        known = [str(number) for number in range(7)]
    wrong = sorted(set(known) - {row.answer})
    return shuffled([row.answer, *rng.sample(wrong, 3)], rng)


def shuffled(texts: list[str], rng: random.Random) -> list[str]:
    return rng.sample(texts, len(texts))


def exam(code: str, number: int, row: Row, choices: list[str], image: str | None) -> dict[str, Any]:
    return {
        **dict.fromkeys(EXAM, ""), "language": code, "country": "none", "file_name": "scenes", "source": "scenes",
        "license": "Apache-2.0", "level": "demonstration", "category_en": row.task, "general_category_en": row.task,
        "original_question_num": str(number), "question": row.question, "options": choices,
        "answer": choices.index(row.answer), "image_information": "essential" if image else None,
        "image_type": "figure" if image else None, "image_png": image and image.rpartition("/")[2], "image": image,
    }  # fmt: skip


def write(path: Path, schema: dict[str, str], columns: dict[str, list[Any]]) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = arrow.table({name: arrow.array(columns[name], arrow_type(kind)) for name, kind in schema.items()})
    parquet.write_table(table, path)


def arrow_type(kind: str) -> Any:
    """Arrow's type; images are lists of files with their paths, as Hugging Face's data sets have them."""
    import pyarrow as arrow

    if kind == IMAGES:
        return arrow.list_(arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]))
    return arrow.list_(arrow.string()) if kind == TEXTS else arrow.type_for_alias(kind)


if __name__ == "__main__":
    main()
