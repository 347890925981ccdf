"""What the command line adds to the library's words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

import ayaedge
import ayaedge_export
from ayaedge import ContextLengthError
from ayaedge.cli.console import FLAGS, with_flags
from ayaedge.cli.main import app

ROOTS = [Path(package.__file__).parent for package in (ayaedge, ayaedge_export)]


def flags(command: click.Command) -> Iterator[str]:
    for option in command.params:
        yield from option.opts + option.secondary_opts
    for inner in getattr(command, "commands", {}).values():
        yield from flags(inner)


def sentences() -> Iterator[tuple[Path, str]]:
    """What the library may say: its strings of several words that are no docstrings."""
    for path in (path for root in ROOTS for path in root.rglob("*.py")):
        if path.parent.name == "cli":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and " " in value.strip() and id(node) not in said:
                yield path, value


def test_only_the_command_line_speaks_of_flags() -> None:
    known = {flag for flag in flags(typer.main.get_command(app)) if flag.startswith("-")}
    assert {"--max-tiles", "-c"} < known
    found = [
        (path.name, text)
        for path, text in sentences()
        if not text.startswith("pip ") and known & set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
    ]
    assert found == []


@pytest.mark.parametrize("name", FLAGS)
def test_every_advice_that_has_a_flag_is_given_and_every_flag_exists(name: str) -> None:
    assert any(name in text for _, text in sentences())
    known = set(flags(typer.main.get_command(app))) | {"ayaedge"}
    assert FLAGS[name].split()[0] in known


def test_advice_is_repeated_in_flags() -> None:
    error = ContextLengthError(needed=9, available=5, image_tokens=7)
    assert with_flags(str(error)).endswith("raise context_size (on the command line: -c N, --max-tiles N)")
    assert with_flags("my_max_tiles.png is no image") == "my_max_tiles.png is no image"
