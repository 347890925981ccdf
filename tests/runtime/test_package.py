from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import ayaedge

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "ayaedge_export",
    "ayaedge_quant",
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "gguf",
    "safetensors",
}
LAZY = {"onnxruntime", "llama_cpp", "jinja2", "typer", "rich", "regex", "prompt_toolkit", "asyncio"}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_public_names_are_those_of_all() -> None:
    public = {name for name in vars(ayaedge) if not name.startswith("_")}
    modules = {name for name in public if find_spec(f"ayaedge.{name}")}
    assert public - modules == set(ayaedge.__all__)
    assert len(set(ayaedge.__all__)) == len(ayaedge.__all__)


def test_every_error_is_drawn_and_inherits_the_base() -> None:
    import ayaedge.errors as errors

    classes = [
        value for value in vars(errors).values() if getattr(value, "__module__", "") == errors.__name__
    ]
    classes = [value for value in classes if isinstance(value, type)]
    for error in classes:
        assert issubclass(error, errors.AyaEdgeError)
        assert error.__name__ in (errors.__doc__ or "")


def test_importing_and_answering_load_neither_exporter_nor_frameworks() -> None:
    code = (
        "import sys, ayaedge; lazy = sorted(sys.modules); m = ayaedge.AyaVision.load(); m.ask('x', max_tokens=1);"
        "print(*lazy); print(*sys.modules)"
    )
    at_import, at_answer = (set(line.split()) for line in run(code).splitlines())
    assert not at_answer & FORBIDDEN
    assert not at_import & (FORBIDDEN | LAZY)


def test_no_file_of_the_runtime_imports_the_exporter_at_its_top() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        for node in tree.body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & FORBIDDEN, path


def test_only_the_command_line_knows_the_exporter() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        if path.parent.name != "cli":
            assert "import ayaedge_" not in path.read_text("utf-8"), path
            assert "from ayaedge_" not in path.read_text("utf-8"), path


def test_quant_does_not_import_the_exporter() -> None:
    for path in (ROOT / "quant").rglob("*.py"):
        assert "ayaedge_export" not in path.read_text("utf-8").replace("`ayaedge_export", ""), path
