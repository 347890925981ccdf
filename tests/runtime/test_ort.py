"""ONNX Runtime says nothing to its makers, whoever loads it first."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ayaedge import BackendError, ort

ROOT = Path(__file__).parents[2]
HUGGING_FACE = {"transformers", "optimum", "huggingface_hub"}
LOAD = "import logging; logging.basicConfig(); from ayaedge import ort; ort.library(); ort.library();"
STATE = "import os; print(os.environ['ORT_DISABLE_TELEMETRY'], ort.loaded_before)"


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    return subprocess.run(
        [sys.executable, "-c", code], env={**environment, **variables}, capture_output=True, text=True, check=True
    )  # fmt: skip


def imported(path: Path) -> Iterator[str]:
    """Packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_importing_ayaedge_switches_telemetry_off_before_anyone_loads_the_library() -> None:
    code = "import sys, os, ayaedge; print('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'])"
    assert run(code).stdout.split() == ["False", "1"]
    assert run(code, ORT_DISABLE_TELEMETRY="0").stdout.split() == ["False", "1"]


def test_loading_says_nothing_where_telemetry_is_off() -> None:
    for code, variables in (
        (LOAD + STATE, {}),
        ("import onnxruntime;" + LOAD + STATE, {"ORT_DISABLE_TELEMETRY": "1"}),
    ):
        done = run(code, **variables)
        assert done.stdout.split() == ["1", "False"]
        assert done.stderr == ""


@pytest.mark.parametrize("value", [None, "0"])
def test_a_program_that_loaded_the_library_itself_is_warned_once(value: str | None) -> None:
    variables = {} if value is None else {"ORT_DISABLE_TELEMETRY": value}
    if value is None:  # the tests themselves must stay silent: only the order of loading counts here
        code = "import sys, types; sys.modules['onnxruntime'] = types.SimpleNamespace(disable_telemetry_events=int);"
    else:
        code = "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'; import onnxruntime;"
        code += "os.environ['ORT_DISABLE_TELEMETRY'] = '0';"
    done = run(code + LOAD + STATE, **variables)
    assert done.stdout.split() == ["1", "True"]
    assert done.stderr.count("WARNING") == 1
    assert "ORT_DISABLE_TELEMETRY=1" in done.stderr


def test_one_module_imports_onnx_runtime() -> None:
    folders = ("runtime", "export", "quant", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if "onnxruntime" in imported(path)] == ["ort.py"]


def test_every_module_that_imports_hugging_faces_libraries_goes_offline_first() -> None:
    for path in (ROOT / "export").rglob("*.py"):
        if HUGGING_FACE & set(imported(path)) or '_import("transformers")' in path.read_text("utf-8"):
            assert "    stay_offline()\n" in path.read_text(
                "utf-8"
            ) or "\nstay_offline()\n" in path.read_text("utf-8")


def test_where_it_is_not_installed_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if nothing had been installed
    with pytest.raises(BackendError, match=r'cannot be loaded .*pip install "onnxruntime'):
        ort.library.__wrapped__()
