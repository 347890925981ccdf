"""The commands that show and empty what is kept between processes: decoder states and prepared vision graphs."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ayaedge.cache.options import NAME_ANOTHER, CacheOptions, cache_directory
from ayaedge.cache.prepared_graphs import PreparedGraphs
from ayaedge.cache.stores import DiskStates
from ayaedge.cache.verified import HASH_NAME, HASHES
from ayaedge.cli.console import JsonFlag, announce, print_table, size_text, stderr, write_json
from ayaedge.errors import printable
from ayaedge.files import forget_abandoned, matching, not_own
from ayaedge.planning.profile import MACHINE

app = typer.Typer(
    help="Look after what is kept of images and prompts; only you can read it.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command("ls")
def list_states(as_json: JsonFlag = False) -> None:
    """List what is kept, the least recently used first."""
    directory = _directory(as_json=as_json)
    store, graphs = _store(directory), PreparedGraphs(directory / "vision")
    entries = store.entries()
    if as_json:
        states = [
            {"file": entry.path.name, "bytes": entry.nbytes, "used": _when(entry.used)} for entry in entries
        ]
        prepared = [
            {"graph": entry.name, "bytes": _size(entry), "used": _when(used)}
            for entry, used in graphs.entries()
        ]
        found = {"directory": str(store.directory), "states": states, "vision_graphs": prepared}
        write_json(found)
        return
    table = Table("what", "key", "last used")
    table.add_column("size", justify="right")
    for entry in entries:
        table.add_row("state", entry.path.stem[:16], _when(entry.used), size_text(entry.nbytes))
    total = sum(entry.nbytes for entry in entries)
    for graph, used in graphs.entries():
        total += _size(graph)
        table.add_row("vision graph", graph.name[:16], _when(used), size_text(_size(graph)))
    table.add_section()
    table.add_row(printable(str(store.directory)), "", "", size_text(total))
    print_table(table)


@app.command()
def prune(
    limit: Annotated[
        float, typer.Option("--to", min=0, help="Gigabytes that may stay; the least recently used go.")
    ] = CacheOptions.disk_bytes / 1e9,
) -> None:
    """Remove states that were not used for long; vision graphs stay, of which there are few."""
    _report(_store(_directory()), int(limit * 1e9))


@app.command()
def clear() -> None:
    """Remove everything: states, vision graphs, drawn bundles of `bench`, and what was measured of this machine.

    What ayaedge did not put there stays, and so does the secret by which saved conversations know their owner.
    """
    directory = _directory()
    PreparedGraphs(directory / "vision").clear()
    _remove(directory / MACHINE, re.compile(r"(verdict-)?[0-9a-f]{64}\.json"))
    _remove(directory / HASHES, HASH_NAME)
    _remove(directory / "synthetic", re.compile(r"synthetic-aya-vision-(8b|32b)(-\d+-layers)?"))
    _report(_store(directory), 0)


def _remove(directory: Path, name: re.Pattern[str]) -> None:
    """Remove what has a name of ours from a directory, and that if nothing else is in it."""
    forget_abandoned(directory, age=0)
    for path in matching(directory, "*"):
        if not name.fullmatch(path.name):
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with suppress(OSError):
        directory.rmdir()


def _report(store: DiskStates, limit: int) -> None:
    removed = store.prune(limit)
    announce("removed", f"{len(removed)} states ({size_text(sum(entry.nbytes for entry in removed))})")


def _directory(*, as_json: bool = False) -> Path:
    """The directory of the cache; says that nothing is kept, and ends the command, if there is none of this user's."""
    directory = cache_directory()
    foreign = directory and not_own(directory)
    if directory is not None and not foreign:
        return directory
    if as_json:
        write_json({"directory": None, "states": [], "vision_graphs": []})
    else:
        why = f"{directory} is not used: {foreign}" if foreign else "this user has no home directory"
        stderr.print(f"nothing is kept: {why}; {NAME_ANOTHER}")
    raise typer.Exit


def _size(entry: Path) -> int:
    """Bytes of an entry; another process may be removing it."""
    size = 0
    for path in matching(entry, "*"):
        with suppress(OSError):
            size += path.stat().st_size
    return size


def _store(directory: Path) -> DiskStates:
    return DiskStates(directory, CacheOptions.disk_bytes)


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
