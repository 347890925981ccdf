"""A local copy of a data set, as questions: whichever revision of columns, whichever part of it is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from ayaedge.benchmark.languages import code_of, is_folder
from ayaedge.benchmark.pictures import Pictures
from ayaedge.benchmark.questions import Question
from ayaedge.checks import brief, check_options, one_of, whole_number
from ayaedge.errors import InvalidOptionError, MissingExtraError, list_faults

Benchmark = Literal["aya-vision-bench", "m-wildvision", "kaleidoscope"]

_Columns = Mapping[str, tuple[str, ...]]
_OPEN: _Columns = {
    "text": ("question", "prompt"),
    "images": ("image", "images"),
    "index": ("index", "question_id"),
    "task": ("image_source_category", "image_source"),
    "reference": ("reference",),
    "language": ("language",),
}
"""Columns of questions without options, by what they are here: the older name, then the newer one."""
_CHOICE: _Columns = {
    "text": ("question",),
    "images": ("image",),
    "options": ("options",),
    "right": ("answer",),
    "task": ("general_category_en", "category_en"),
    "language": ("language",),
}
_COLUMNS: Mapping[str, _Columns] = {
    "aya-vision-bench": _OPEN, "m-wildvision": _OPEN, "kaleidoscope": _CHOICE
}  # fmt: skip
_NEEDED = ("text", "images", "options", "right")
_POINTER = b"version https://git-lfs"
_WITHOUT_TASK = ("no picture", "one picture", "several pictures")
_ROWS = 8
"""Read at once, with their pictures."""


@dataclass(frozen=True)
class _Table:
    """One file, and what its columns are called."""

    path: Path
    folder: str | None
    """The language that it is named after."""
    columns: Mapping[str, str]


class DataSet:
    """The questions of a benchmark in a directory: all of it, one language's folder, or a few files.

    With `languages` only those, by folder or by code; with `limit` so many of each language. Raises
    InvalidOptionError for a directory that does not hold the data set, with all that is wrong with its files, and
    MissingExtraError without pyarrow.
    """

    def __init__(
        self,
        name: Benchmark,
        directory: Path,
        *,
        languages: Collection[str] = (),
        limit: int | None = None,
    ) -> None:
        check_options(
            one_of("the benchmark", name, get_args(Benchmark)),
            whole_number("limit", limit, least=1, optional=True),
        )
        self.name, self.directory, self.limit = name, directory, limit
        self._parquet = _require_parquet()
        self._tables = self._open()
        self._wanted = self._chosen(languages)

    @property
    def has_options(self) -> bool:
        """Whether its questions are multiple choice."""
        return "options" in _COLUMNS[self.name]

    @property
    def has_references(self) -> bool:
        """Whether any of its files has answers that are known to be good."""
        return any("reference" in table.columns for table in self._tables)

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Those that are in the directory, in the order of its files."""
        found: dict[str, None] = {}
        for table in self._tables:
            found.update(dict.fromkeys([table.folder] if table.folder else self._column_of(table)))
        return tuple(found)

    @cached_property
    def count(self) -> int:
        """How many questions are wanted."""
        counted: Counter[str] = Counter()
        for table in self._tables:
            if table.folder:
                counted[table.folder] += self._parquet.read_metadata(table.path).num_rows
            else:
                counted.update(self._column_of(table))
        wanted = [number for language, number in counted.items() if language in self._wanted]
        return sum(number if self.limit is None else min(number, self.limit) for number in wanted)

    def questions(self) -> Generator[Question, None, None]:
        """The questions that are wanted, in the order of the files; the same every time."""
        counted: Counter[str] = Counter()
        keys: Counter[str] = Counter()
        pictures = Pictures(self.directory)
        try:
            for table in self._tables:
                for number, row in enumerate(self._rows(table), 1):
                    language = table.folder or str(row["language"])
                    if language not in self._wanted or counted[language] == self.limit:
                        continue
                    counted[language] += 1
                    yield self._question(row, language, f"row {number} of {table.path}", pictures, keys)
        finally:
            pictures.close()

    def _question(
        self, row: Mapping[str, Any], language: str, place: str, pictures: Pictures, keys: Counter[str]
    ) -> Question:
        name = f"{language}/{row.get('index', keys[language])}"
        keys[language] += 1
        keys[name] += 1
        text, reference = row["text"], row.get("reference")
        if not isinstance(text, str) or not text.strip():
            raise InvalidOptionError(f"{place} has no question")
        options, right = _options(row, place) if self.has_options else ((), None)
        images = pictures.read(row.get("images"), place)
        task = str(row.get("task") or "") or _WITHOUT_TASK[min(len(images), 2)]
        return Question(
            name if keys[name] == 1 else f"{name}#{keys[name]}", language, task, text, images,
            reference if isinstance(reference, str) else None, options, right,
        )  # fmt: skip

    def _open(self) -> list[_Table]:
        paths = sorted(self.directory.rglob("*.parquet"))
        if not paths:
            raise InvalidOptionError(
                f"there is no .parquet in {self.directory}: it must hold a copy of {self.name}"
            )
        tables, faults = [], []
        for path in paths:
            try:
                tables.append(self._table(path))
            except (ValueError, OSError) as error:
                faults.append(f"{path}: {error}")
        if faults:
            raise InvalidOptionError(list_faults(f"the copy of {self.name}", faults))
        return tables

    def _table(self, path: Path) -> _Table:
        with path.open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise ValueError("it is a pointer of Git LFS, not the file itself: git lfs pull")
        names = self._parquet.read_schema(path).names
        wanted = _COLUMNS[self.name]
        columns = {
            part: found for part, given in wanted.items() if (found := _first(given, names)) is not None
        }
        folder = self._folder(path)
        needed = [part for part in _NEEDED if part in wanted] + ["language"] * (folder is None)
        if missing := [" or ".join(wanted[part]) for part in needed if part not in columns]:
            raise ValueError(
                f"it has the columns {', '.join(names)}, and none that is called {', nor '.join(missing)}"
            )
        return _Table(path, folder, columns)

    def _folder(self, path: Path) -> str | None:
        """The language that a file is named after: its own name, or that of a folder around it."""
        inner = path.relative_to(self.directory)
        names = [inner.stem, *reversed(inner.parts[:-1]), self.directory.absolute().name]
        return next(filter(is_folder, names), None)

    def _rows(self, table: _Table) -> Iterator[dict[str, Any]]:
        parts = {column: part for part, column in table.columns.items()}
        try:
            with self._parquet.ParquetFile(table.path) as file:
                for batch in file.iter_batches(batch_size=_ROWS, columns=list(parts)):
                    for row in batch.to_pylist():
                        yield {parts[column]: value for column, value in row.items()}
        except (ValueError, OSError) as error:
            if isinstance(error, InvalidOptionError):
                raise
            raise InvalidOptionError(f"{table.path} cannot be read: {error}") from None

    def _column_of(self, table: _Table) -> list[str]:
        """The language of each row."""
        column = table.columns["language"]
        return list(map(str, self._parquet.read_table(table.path, columns=[column])[column].to_pylist()))

    def _chosen(self, languages: Collection[str]) -> frozenset[str]:
        if not languages:
            return frozenset(self.languages)
        chosen, faults = set(), []
        for wanted in languages:
            found = {one for one in self.languages if one == wanted or code_of(one) == code_of(wanted)}
            chosen |= found
            if not found:
                faults.append(brief(wanted))
        if faults:
            raise InvalidOptionError(
                f"{self.directory} has nothing in {', '.join(faults)}; it has {', '.join(self.languages)}"
            )
        return frozenset(chosen)


def _options(row: Mapping[str, Any], place: str) -> tuple[tuple[str, ...], int]:
    options, right = row["options"], row["right"]
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InvalidOptionError(f"{place} has no list of options")
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
        raise InvalidOptionError(
            f"{place} has {len(options)} options, and none has the number {brief(right)}"
        )
    return tuple(options), right


def _first(given: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in given if name in names), None)


def _require_parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("reading a data set", "parquet") from error
    return parquet
