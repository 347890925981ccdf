"""What PyInstaller is told of this package; `tests/test_frozen.py` freezes programs with it."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import ayaedge.cli.main
from ayaedge.freezing import hook_directories
from command_line import commands

ROOT = Path(__file__).parents[2]
(HOOKS,) = map(Path, hook_directories())
FRAMEWORKS = {"torch", "transformers"}


def hook(package: str) -> dict[str, Any]:
    return runpy.run_path(str(HOOKS / f"hook-{package}.py"))


def taken_along(found: dict[str, Any]) -> set[str]:
    """Every file that a hook takes along, as folder and name in the program; each must be there."""
    files = [*found.get("binaries", ()), *found.get("datas", ())]
    assert all(Path(source).exists() for source, _ in files)
    return {f"{target}/{Path(source).name}" for source, target in files}


def test_pyinstaller_finds_the_hooks_through_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["entry-points"]["pyinstaller40"]["hook-dirs"].partition(":")
    assert getattr(import_module(module), function)() == [str(HOOKS)]
    assert {path.stem for path in HOOKS.glob("hook-*.py")} == {
        f"hook-{package}"
        for package in ("ayaedge", "ayaedge_quant", "llama_cpp", "llguidance", "onnxruntime")
    }


def test_a_program_gets_the_demonstration_model_our_kernels_and_what_is_loaded_late() -> None:
    found = hook("ayaedge")
    names = taken_along(found)
    assert {f"ayaedge/demo/{name}" for name in ("manifest.json", "vision.onnx", "decoder.gguf")} <= names
    assert any(name.startswith("ayaedge/decoder/libayaedge_prefill.") for name in names)
    assert {"ayaedge.model", "ayaedge.isolation.child", "ayaedge.grammar.matcher"} <= set(
        found["hiddenimports"]
    )
    assert not any(name.startswith(("ayaedge.cli", "ayaedge.server")) for name in found["hiddenimports"])
    assert FRAMEWORKS | {"ayaedge_export"} <= set(found["excludedimports"])


def test_a_program_that_is_the_command_line_gets_every_command() -> None:
    groups = [getattr(command, "commands", {"": command}) for command in commands().values()]
    needed = {command.callback.__module__ for group in groups for command in group.values()}
    imports = ast.walk(ast.parse(Path(ayaedge.cli.main.__file__).read_text("utf-8")))
    found = [node for node in imports if isinstance(node, ast.ImportFrom) and node.module == "ayaedge.cli"]
    assert {"ayaedge.cli.ask", "ayaedge.cli.cache", "ayaedge.cli.export"} <= needed
    assert needed == {f"ayaedge.cli.{alias.name}" for node in found for alias in node.names}


@pytest.mark.parametrize(
    ("package", "part"),
    [
        ("llama_cpp", "llama_cpp/lib/libllama."),
        ("llama_cpp", "llama_cpp/lib/libggml-base."),
        ("onnxruntime", "onnxruntime/capi/libonnxruntime"),
        ("ayaedge_quant", "ayaedge_quant/libayaedge_kernels."),
        ("llguidance", "llguidance-"),
    ],
)
def test_a_library_below_us_brings_its_parts_and_no_framework(package: str, part: str) -> None:
    found = hook(package)
    assert any(name.startswith(part) for name in taken_along(found))
    assert "torch" in found["excludedimports"]


def test_llama_cpp_brings_no_clients_of_the_network_and_what_they_know() -> None:
    """Its chats in OpenAI's form would bring openai along, which brings pandas, which brings Arrow: 400 MB."""
    assert {"openai", "requests", "huggingface_hub"} <= set(hook("llama_cpp")["excludedimports"])


def test_a_program_without_a_console_answers(tmp_path: Path) -> None:
    code = (
        "import sys; sys.stdin = sys.stdout = sys.stderr = None\n"
        "from ayaedge import AyaVision\n"
        "with AyaVision.load() as model: answer = model.ask(sys.argv[1], images=sys.argv[2]).text\n"
        "open(sys.argv[3], 'w').write(answer)"
    )
    picture, answer = ROOT / "examples" / "pictures" / "six-cells.png", tmp_path / "answer"
    subprocess.run(
        [sys.executable, "-c", code, "What number is at the bottom left?", picture, answer],
        check=True,
        timeout=60,
    )
    assert answer.read_text() == "2675"
