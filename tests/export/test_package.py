"""The public face of the exporter: which names it has, and what importing it costs."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import ayaedge_export

FACE = Path(ayaedge_export.__file__)
HEAVY = {
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnxruntime",
    "llama_cpp",
    "gguf",
    "safetensors",
    "numpy",
}
BUILTINS = {"str", "int", "float", "bool", "bytes", "dict", "list", "tuple", "object", "None"}
STANDARD = {"Path", "Sequence", "Mapping", "Iterator", "Iterable", "Callable", "Any", "NDArray", "np"}


def test_the_public_names_are_those_of_all() -> None:
    public = {name for name in dir(ayaedge_export) if not name.startswith("_")}
    modules = {name for name in public if find_spec(f"ayaedge_export.{name}")}
    imported = {"TYPE_CHECKING", "Any", "import_module"}
    assert public - modules - imported == set(ayaedge_export.__all__)
    assert len(set(ayaedge_export.__all__)) == len(ayaedge_export.__all__)


def test_type_checkers_see_the_names_that_are_imported_when_they_are_used() -> None:
    tree = ast.parse(FACE.read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == ayaedge_export._PLACE_OF
    assert set(seen) == set(ayaedge_export.__all__)


def test_importing_the_exporter_loads_nothing_that_takes_time() -> None:
    code = "import sys, ayaedge_export; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not set(found.split()) & HEAVY


def test_exporting_needs_no_framework() -> None:
    code = (
        "import sys, ayaedge_export as e; names = [getattr(e, name) for name in e.__all__ if name not in"
        " ('verify_bundle', 'Report')]; print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not set(found.split()) & {"torch", "transformers", "optimum"}


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'ayaedge_export' has no attribute 'export_chekpoint'"):
        ayaedge_export.export_chekpoint  # noqa: B018


def mentioned(function: Any) -> set[str]:
    """Names of types in a signature, as it is written."""
    texts = [str(text) for text in inspect.get_annotations(function).values()]
    return {node.id for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def signatures() -> Iterator[tuple[str, Any]]:
    """Every public function, and every public method of a public class."""
    for name in ayaedge_export.__all__:
        value = getattr(ayaedge_export, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and value.__module__.startswith("ayaedge_"):
            for member, found in vars(value).items():
                method = getattr(found, "__func__", found)
                if inspect.isfunction(method) and not member.startswith("_"):
                    yield f"{name}.{member}", method


def test_everything_that_a_public_signature_mentions_can_be_imported() -> None:
    known = {*ayaedge_export.__all__, *BUILTINS, *STANDARD}
    unknown = {name: mentioned(function) - known for name, function in signatures()}
    assert {name: names for name, names in unknown.items() if names} == {}
    assert len(unknown) > 20
