"""Which versions users may have, which ones are developed with, and that both agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ayaedge

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
USERS = ("heif", "mcp", "parquet", "pdf", "ray", "server", "export", "reference", "trace")
ADMITTED = [
    one
    for line in [*PROJECT["dependencies"], *(line for name in (*USERS, "dev") for line in EXTRAS[name])]
    if (one := Requirement(line)).name != "ayaedge"
]
LINES = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
PINS = dict(line.split("==") for line in LINES if not line.startswith("#"))


@pytest.mark.parametrize("admitted", ADMITTED, ids=str)
def test_what_is_developed_with_is_pinned_to_a_version_that_users_may_have(admitted: Requirement) -> None:
    assert admitted.specifier.contains(PINS[canonicalize_name(admitted.name)])


@pytest.mark.parametrize("admitted", ADMITTED, ids=str)
def test_users_are_not_held_to_one_exact_version(admitted: Requirement) -> None:
    assert not {"==", "==="} & {part.operator for part in admitted.specifier}


def test_the_reference_may_be_of_transformers_5_and_of_older_pytorch() -> None:
    found = {one.name: one.specifier for one in map(Requirement, EXTRAS["reference"])}
    assert all(found["transformers"].contains(version) for version in ("4.56.0", "4.57.6", "5.24.0"))
    assert not found["transformers"].contains("4.57.1"), "it sees images otherwise than all others"
    assert found["torch"].contains("2.6.0")


def test_the_gate_installs_the_pinned_versions() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert '--constraint constraints.txt --editable ".[dev]"' in makefile
    assert "$(VENV)/.dev: pyproject.toml constraints.txt" in makefile


def test_the_package_is_of_the_version_that_the_changelog_dates_last() -> None:
    dated = re.findall(
        r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$",
        (ROOT / "CHANGELOG.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert dated[0] == ayaedge.__version__
