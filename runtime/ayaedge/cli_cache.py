"""The commands that show and empty the cache of decoder states."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from ayaedge.console import JsonFlag, announce, print_table, size_text, write
from ayaedge.states import CacheOptions, DiskStates, cache_directory

app = typer.Typer(
    no_args_is_help=True, help="Look after what is kept of pictures and prompts; only you can read it."
)


@app.command("ls")
def list_states(as_json: JsonFlag = False) -> None:
    """List what is kept, the least recently used first."""
    store = _store()
    entries = store.entries()
    if as_json:
        states = [
            {"file": entry.path.name, "bytes": entry.nbytes, "used": _when(entry.used)} for entry in entries
        ]
        write(json.dumps({"directory": str(store.directory), "states": states}, ensure_ascii=False) + "\n")
        return
    table = Table("state", "last used")
    table.add_column("size", justify="right")
    for entry in entries:
        table.add_row(entry.path.stem[:16], _when(entry.used), size_text(entry.nbytes))
    table.add_section()
    table.add_row(str(store.directory), "", size_text(sum(entry.nbytes for entry in entries)))
    print_table(table)


@app.command()
def prune(
    limit: Annotated[
        float, typer.Option("--to", min=0, help="Gigabytes that may stay; the least recently used go.")
    ] = CacheOptions.disk_bytes / 1e9,
) -> None:
    """Remove states that were not used for long."""
    _report(_store(), int(limit * 1e9))


@app.command()
def clear() -> None:
    """Remove all states."""
    _report(_store(), 0)


def _report(store: DiskStates, limit: int) -> None:
    removed = store.prune(limit)
    announce("removed", f"{len(removed)} states ({size_text(sum(entry.nbytes for entry in removed))})")


def _store() -> DiskStates:
    return DiskStates(cache_directory(), CacheOptions.disk_bytes)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
