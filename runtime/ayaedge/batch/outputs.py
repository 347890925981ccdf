"""What is made of a batch's rows: texts and JSON next to the images, a table, OpenAI's batch file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ayaedge.batch.items import BatchItem
from ayaedge.batch.journal import BatchRow
from ayaedge.errors import MissingExtraError
from ayaedge.files import read_text, replacing

Existing = Literal["skip", "overwrite", "append"]
_COLUMNS = (
    "path", "page", "custom_id", "sha256", "prompt", "answer", "object", "stop_reason", "prompt_tokens",
    "completion_tokens", "tiles", "seconds", "error", "fingerprint",
)  # fmt: skip


def sidecar(item: BatchItem, suffix: str) -> Path | None:
    """The file next to an item's image that gets its answer: `photo.txt`, `report-3.txt`; None without a file."""
    file = item.file
    if file is None:
        return None
    return file.with_name(file.stem + ("" if item.page is None else f"-{item.page}") + suffix)


def write_sidecar(path: Path, row: BatchRow, existing: Existing) -> None:
    """Write an answer next to its image, whole or not at all; failures are not written.

    `append` adds it behind what is there, unless that ends with it: then the batch was ended between row and file.
    """
    if row.error is not None:
        return
    if path.suffix == ".json":
        content = json.dumps(row.to_dict(), ensure_ascii=False, indent=1) + "\n"
    else:
        content = (row.answer or "") + "\n"
    before = read_text(path) if existing == "append" and path.exists() else ""
    if f"\n{before}".endswith(f"\n{content}"):
        return
    if before and not before.endswith("\n"):
        before += "\n"
    with replacing(path, private=False) as stream:
        stream.write((before + content).encode())


def write_csv(path: Path, rows: Sequence[BatchRow]) -> None:
    """A table with a line for each row, in UTF-8 with a mark, by which spreadsheets know it."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, _COLUMNS)
    table.writeheader()
    table.writerows({name: _cell(value) for name, value in _flat(row).items()} for row in rows)
    with replacing(path, private=False) as stream:
        stream.write(text.getvalue().encode("utf-8-sig", "replace"))


def require_parquet() -> Any:
    """pyarrow; MissingExtraError without it."""
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingExtraError("writing Parquet", "parquet") from error
    return arrow, parquet


def arrow_table(rows: Sequence[BatchRow]) -> Any:
    """A `pyarrow.Table` with a line for each row; objects are JSON in a column of text."""
    arrow, _ = require_parquet()
    whole, real = ("page", "prompt_tokens", "completion_tokens", "tiles"), ("seconds",)
    kinds = {
        name: arrow.int64() if name in whole else arrow.float64() if name in real else arrow.string()
        for name in _COLUMNS
    }
    flat = [_flat(row) for row in rows]
    return arrow.table({name: arrow.array([row[name] for row in flat], kind) for name, kind in kinds.items()})


def write_parquet(path: Path, rows: Sequence[BatchRow]) -> None:
    """The same table as Parquet."""
    _, parquet = require_parquet()
    table = arrow_table(rows)
    with replacing(path, private=False) as stream:
        parquet.write_table(table, stream)


def write_openai(path: Path, rows: Sequence[BatchRow]) -> None:
    """OpenAI's file of results: a line for each request, in the order of the rows."""
    with replacing(path, private=False) as stream:
        for row in rows:
            if row.custom_id is not None:
                stream.write(json.dumps(_openai_line(row), ensure_ascii=False).encode() + b"\n")


def _openai_line(row: BatchRow) -> dict[str, Any]:
    number = f"{row.sha256 or ''}"[:24]
    response = {"status_code": 200, "request_id": f"req_{number}", "body": row.completion}
    error = {"code": "failed", "message": row.error}
    return {
        "id": f"batch_req_{number}",
        "custom_id": row.custom_id,
        "response": response if row.error is None else None,
        "error": None if row.error is None else error,
    }


def _flat(row: BatchRow) -> dict[str, Any]:
    values = {**row.to_dict(), **(row.usage or {})}
    if row.object is not None:
        values["object"] = json.dumps(row.object, ensure_ascii=False)
    return {name: values.get(name) for name in _COLUMNS}


def _cell(value: Any) -> Any:
    """A spreadsheet computes what begins like a formula: an answer may repeat what an image says."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
