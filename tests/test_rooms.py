"""The plan of the house: which room may import which, and how large a file may be."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "ayaedge": ROOT / "runtime" / "ayaedge",
    "ayaedge_export": ROOT / "export" / "ayaedge_export",
    "ayaedge_quant": ROOT / "quant" / "ayaedge_quant",
}
FLOORS = {
    "ayaedge": (
        {
            "manifest",
            "bundle",
            "checks",
            "files",
            "cancellation",
            "errors",
            "llama",
            "ort",
            "charts",
            "untrusted",
        },
        {"text", "hardware"},
        {"grammar", "images", "decoder", "cache"},
        {"freezing"},
        {"answers", "options", "chat_file", "vision"},
        {"openai", "planning"},
        {"engine"},
        {"isolation"},
        {"conversation", "batch"},
        {"model"},
        {"bench", "benchmark", "ray", "server"},
        {"cli"},
        {"__main__"},
    ),
    "ayaedge_export": (
        {"offline", "matmul_threads"},
        {"checkpoint", "resume"},
        {"decoder", "vision", "merge"},
        {"manifest", "plan"},
        {"effort"},
        {"calibration"},
        {"best"},
        {"exporter"},
        {"evaluation", "synthetic"},
    ),
}
"""Rooms and single modules from the ground up; those of one floor do not know each other, but on the ground."""
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
MEDIAN_FUNCTION = 7
NINE_IN_TEN_FUNCTIONS = 20
MOST_MODULES = {"ayaedge": 14, "ayaedge_export": 8}


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name."""
    found = {}
    for package, root in PACKAGES.items():
        for path in root.rglob("*.py"):
            parts = [package, *path.relative_to(root).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def nodes(module: str) -> list[ast.AST]:
    """Every node of a module's syntax tree."""
    return list(ast.walk(ast.parse(modules()[module].read_text("utf-8"))))


@cache
def imported(module: str) -> list[str]:
    """Our modules that a module imports, anywhere in it but for types alone."""
    found: list[str] = []
    for_types = {
        id(inner)
        for node in nodes(module)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes(module):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in modules() else node.module for name in names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def room(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def floor(module: str) -> int:
    floors = FLOORS[module.split(".")[0]]
    return next(number for number, rooms in enumerate(floors) if room(module) in rooms)


def test_modules_import_each_other_in_one_direction() -> None:
    graph = {
        module: {name for name in imported(module) if name in modules()} - {module} for module in modules()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", FLOORS)
def test_a_room_imports_only_rooms_below_it(package: str) -> None:
    faults = [
        f"{module} imports {name}"
        for module in modules()
        for name in imported(module)
        if module.startswith(f"{package}.") and name.startswith(f"{package}.") and room(module) != room(name)
        if floor(name) > floor(module) or floor(name) == floor(module) > 0
    ]
    assert faults == []


@pytest.mark.parametrize("package", FLOORS)
def test_every_room_has_a_floor(package: str) -> None:
    found = {room(module) for module in modules() if module.startswith(f"{package}.")}
    assert found == set().union(*FLOORS[package])


def test_no_file_is_too_long_to_be_read() -> None:
    lengths = {name: len(path.read_text("utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_module_imports_what_another_keeps_to_itself() -> None:
    faults = [
        f"{module} imports {node.module}.{alias.name}"
        for module in modules()
        for node in nodes(module)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert faults == []


def function_lengths() -> dict[str, int]:
    """Lines of every function and method, from its first decorator to its last line, docstring included."""
    return {
        f"{module}.{node.name}:{node.lineno}": (node.end_lineno or 0)
        - min(inner.lineno for inner in (node, *node.decorator_list))
        + 1
        for module in modules()
        for node in nodes(module)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_no_function_is_too_long_to_be_read() -> None:
    lengths = function_lengths()
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_most_functions_are_seen_at_a_glance() -> None:
    lengths = sorted(function_lengths().values())
    assert median(lengths) <= MEDIAN_FUNCTION
    assert quantiles(lengths, n=10)[-1] <= NINE_IN_TEN_FUNCTIONS


@pytest.mark.parametrize("package", MOST_MODULES)
def test_few_modules_stand_outside_of_the_rooms(package: str) -> None:
    alone = [path for path in PACKAGES[package].glob("*.py") if path.name != "__init__.py"]
    assert len(alone) <= MOST_MODULES[package]
