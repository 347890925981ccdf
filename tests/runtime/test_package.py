from __future__ import annotations

import ast
import importlib.metadata
import inspect
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ForwardRef, get_args, get_type_hints

import pytest
from typing_extensions import Unpack

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
LAZY = {
    "onnxruntime",
    "llama_cpp",
    "llguidance",
    "jinja2",
    "typer",
    "rich",
    "regex",
    "prompt_toolkit",
    "asyncio",
    "ayaedge.isolation",
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_the_public_names_are_those_of_all() -> None:
    public = {name for name in dir(ayaedge) if not name.startswith("_")}
    modules = {name for name in public if find_spec(f"ayaedge.{name}")}
    assert public - modules == set(ayaedge.__all__)
    assert len(set(ayaedge.__all__)) == len(ayaedge.__all__)


def test_importing_the_package_waits_for_nothing_and_its_names_are_there_when_asked_for() -> None:
    assert run(
        "import sys, ayaedge\n"
        "heavy = {'numpy', 'PIL', 'jinja2', 'llama_cpp', 'onnxruntime', 'ayaedge.model'}\n"
        "print(sorted(heavy & sys.modules.keys()), sorted(set(ayaedge.__all__) - set(dir(ayaedge))))\n"
        "from ayaedge import *\n"
        "print(AyaVision.__module__, ayaedge.AyaVision is AyaVision, hasattr(ayaedge, 'nothing'))\n"
        "missing = [name for name in ayaedge.__all__ if name not in globals()]\n"
        "print(missing)"
    ) == "[] []\nayaedge.model True False\n[]\n"  # fmt: skip


ANNOTATED = [
    name
    for name in ayaedge.__all__
    if inspect.isclass(getattr(ayaedge, name)) or inspect.isfunction(getattr(ayaedge, name))
]
MADE_BY_THE_LIBRARY = {"AyaVision", "Conversation", "AnswerHandle", "AnswerStream", "AsyncAnswerStream"}
"""Classes whose constructors are nobody else's business."""


def annotated(name: str) -> Iterator[Any]:
    """A public name, and its public methods and properties, as far as they may have annotations."""
    value = getattr(ayaedge, name)
    yield value
    for kind in value.__mro__ if isinstance(value, type) else ():
        for attribute, member in vars(kind).items() if kind.__module__.startswith("ayaedge") else ():
            if attribute.startswith("_") and (attribute != "__init__" or name in MADE_BY_THE_LIBRARY):
                continue
            found = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if inspect.isfunction(found):
                yield found


@cache
def own_names(module: str) -> frozenset[str]:
    """Names of a module of ours that stand for something of ours."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("ayaedge")]
    names = {alias.asname or alias.name for node in ours for alias in node.names}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


def mentioned(value: Any) -> Iterator[str]:
    """Names of ours that annotations mention."""
    for annotation in getattr(value, "__annotations__", {}).values():
        text = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else str(annotation)
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        yield from names & own_names(value.__module__)


@pytest.mark.parametrize("name", ANNOTATED)
def test_everything_that_a_public_name_mentions_is_public(name: str) -> None:
    for value in annotated(name):
        assert set(mentioned(value)) <= set(ayaedge.__all__), value
        lazy = {name: getattr(ayaedge, name) for name in ("Answer", "BatchItem", "BatchRow")}
        names = {"Unpack": Unpack, **lazy}  # imported for type checkers alone
        for hint in get_type_hints(value, localns=names).values():
            assert_public(hint)


def assert_public(hint: Any) -> None:
    if isinstance(hint, type) and hint.__module__.startswith("ayaedge"):
        assert getattr(ayaedge, hint.__name__, None) is hint
    for inner in get_args(hint):
        for one in inner if isinstance(inner, list) else [inner]:
            assert_public(one)


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


class Frozen:
    """Runs commands as a frozen program has them: every package can be imported, and none has metadata."""

    def __init__(self, directory: Path) -> None:
        for place in map(Path, {sysconfig.get_path(name) for name in ("purelib", "platlib")}):
            for entry in place.iterdir():
                own = entry.name.startswith(("ayaedge", "_ayaedge", "__editable__", "_editable"))
                if not own and entry.suffix not in (".dist-info", ".egg-info", ".pth"):
                    (directory / entry.name).symlink_to(entry)
        self.path = [*(str(ROOT / name) for name in ("runtime", "export", "quant")), str(directory)]

    def __call__(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(self.path), "COLUMNS": "200"}
        command = [sys.executable, "-S", *map(str, arguments)]
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    run = Frozen(tmp_path_factory.mktemp("frozen"))
    found = run("-c", "import importlib.metadata as m; print(*m.distributions())")
    assert (found.returncode, found.stdout) == (0, "\n")
    return run


def test_the_version_is_that_of_the_metadata() -> None:
    assert ayaedge.__version__ == importlib.metadata.version("ayaedge")


def test_the_version_is_shown_with_and_without_metadata(frozen: Frozen) -> None:
    command = ["-m", "ayaedge", "--version"]
    installed = subprocess.run([sys.executable, *command], check=False, capture_output=True, text=True)
    for done in (frozen(*command), installed):
        assert (done.returncode, done.stdout, done.stderr) == (0, f"ayaedge {ayaedge.__version__}\n", "")


def test_a_frozen_program_asks_and_looks_at_the_machine(frozen: Frozen) -> None:
    versions = json.loads(frozen("-m", "ayaedge", "doctor", "--json").stdout)["versions"]
    assert versions["ayaedge"] == ayaedge.__version__
    assert all(versions.values())
    table = frozen("-m", "ayaedge", "doctor")
    assert (table.returncode, "Traceback" in table.stderr) == (0, False)
    assert f"ayaedge {ayaedge.__version__}" in table.stdout
    asked = frozen("-m", "ayaedge", "ask", "-n", "3", "What?")
    assert (asked.returncode, bool(asked.stdout)) == (0, True), asked.stderr
    assert frozen("-c", "import ayaedge.cli.chat_terminal").returncode == 0


def test_a_frozen_program_exports(frozen: Frozen, tiny: Path, tmp_path: Path) -> None:
    done = frozen("-m", "ayaedge", "export", tiny, "-o", tmp_path / "b", "--quant", "f16", "--vision", "fp32")
    assert done.returncode == 0, done.stderr
    made = ayaedge.read_bundle(tmp_path / "b").manifest.created_by
    assert made["ayaedge"] == ayaedge.__version__
    assert made["onnx"] == "unknown"


def test_a_packed_package_says_that_its_model_cannot_be_opened(frozen: Frozen, tmp_path: Path) -> None:
    packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", ROOT / "runtime", "ayaedge"))
    code = f"import sys; sys.path.insert(0, {str(packed)!r}); from ayaedge.cli.main import main; main()"
    done = frozen("-c", code, "ask", "What?")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "the demonstration model is not at" in done.stderr
    assert str(packed) in done.stderr
