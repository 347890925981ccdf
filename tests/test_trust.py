"""What the documents promise about strangers' files: each promise names a test that is there, each floor a version."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROMISES = (ROOT / "docs" / "trust.md").read_text("utf-8").partition("## Promises")[2].partition("\n## ")[0]
SECURITY = (ROOT / "SECURITY.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def rows(table: str) -> list[list[str]]:
    """The cells of a table in Markdown, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def functions_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("promise", rows(PROMISES), ids=lambda row: row[0][:40])
def test_each_promise_names_a_test_that_is_there(promise: list[str]) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", promise[1])
    assert named
    for path, test in named:
        assert test in functions_of(ROOT / path)


def test_there_are_as_many_promises_as_names_of_tests_at_least() -> None:
    assert len(rows(PROMISES)) >= 15


@pytest.mark.parametrize("floor", rows(SECURITY.partition("## Floors")[2]), ids=lambda row: row[0])
def test_no_version_with_a_known_hole_is_admitted(floor: list[str]) -> None:
    name, least, _ = floor
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    admitted = [Requirement(line) for line in (*PROJECT["dependencies"], *extras)]
    (found,) = [one for one in admitted if one.name == name]
    (lowest,) = [part.version for part in found.specifier if part.operator == ">="]
    assert Version(lowest) >= Version(least)
