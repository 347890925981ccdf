"""What the command line adds to the library's words."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import ayaedge as runtime
import ayaedge_export
from ayaedge import ContextLengthError
from ayaedge.cli.console import FLAGS, with_flags
from command_line import ayaedge, commands

ROOTS = [Path(package.__file__).parent for package in (runtime, ayaedge_export)]


@cache
def flags() -> set[str]:
    """Every option and command of the command line."""
    groups = [getattr(command, "commands", {"": command}) for command in commands().values()]
    parameters = [one for group in groups for command in group.values() for one in command.params]
    return {text for one in parameters for text in one.opts + one.secondary_opts}


@cache
def sentences() -> list[tuple[Path, str]]:
    """What the library may say: its strings of several words that are no docstrings."""
    found = []
    for path in (path for root in ROOTS for path in root.rglob("*.py")):
        if path.parent.name == "cli":
            continue
        tree = ast.parse(path.read_text("utf-8"))
        said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and " " in value.strip() and id(node) not in said:
                found.append((path, value))
    return found


def test_only_the_command_line_speaks_of_flags() -> None:
    known = {flag for flag in flags() if flag.startswith("-")}
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
    known = flags() | {"ayaedge"}
    assert FLAGS[name].split()[0] in known


def test_advice_is_repeated_in_flags() -> None:
    error = ContextLengthError(needed=9, available=5, image_tokens=7)
    assert with_flags(str(error)).endswith("raise context_size (on the command line: -c N, --max-tiles N)")
    assert with_flags("my_max_tiles.png is no image") == "my_max_tiles.png is no image"


def test_what_one_command_needs_is_not_loaded_for_another() -> None:
    code = (
        "import atexit, sys; sys.argv[1:] = ['--version']; atexit.register(lambda: print(*sys.modules))\n"
        "from ayaedge.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"numpy", "PIL", "ayaedge.bundle"}.isdisjoint(done.stdout.split())


def test_a_wrong_command_is_answered_with_the_right_one() -> None:
    done = ayaedge("aks")
    assert done.returncode == 2
    assert "Did you mean 'ask'?" in done.stderr
