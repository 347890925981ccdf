"""The documents: their code does what they say, and what they name is there."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import test_offline
import test_rooms

import ayaedge
import ayaedge_export
import command_line
from ayaedge.cli.chat_commands import COMMANDS
from ayaedge.options import AnswerKeywords, answer_options
from command_line import commands

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
SOURCES = [path for folder in ("runtime", "export", "quant") for path in (ROOT / folder).rglob("*.py")]
MOST_README_LINES = 120
SCHEMAS: dict[str, dict[str, Any]] = {
    "$ref": {"type": "array", "items": {"$ref": "#"}},
    "anyOf": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    "allOf": {"allOf": [{"type": "integer"}, {"minimum": 1}]},
    "oneOf": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    "pattern": {"type": "string", "pattern": "^a+$"},
    "multipleOf": {"type": "integer", "multipleOf": 5},
    "patternProperties": {"type": "object", "patternProperties": {"^x_": {"type": "integer"}}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}},
    "then": {"if": {"type": "string"}, "then": {"minLength": 2}},
    "contains": {"type": "array", "contains": {"type": "string"}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "minProperties": {"type": "object", "minProperties": 2},
}
"""One for each keyword that the page on structured output names."""
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INPUT = re.compile(r"(?:\[.*\] )?> (.*)")


def blocks(page: Path, kind: str) -> list[str]:
    return [code for name, code in _BLOCK.findall(page.read_text("utf-8")) if name == kind]


def with_blocks(kind: str) -> pytest.MarkDecorator:
    pages = [page for page in PAGES if blocks(page, kind)]
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


@dataclass
class Step:
    """A command of a console block, what is typed into it, and what it prints."""

    command: str
    typed: list[str] = field(default_factory=list)
    printed: list[str] = field(default_factory=list)


def steps(block: str) -> Iterator[Step]:
    step = None
    for line in block.splitlines():
        if line.startswith("$ "):
            if step:
                yield step
            step = Step(line.removeprefix("$ "))
        elif step and (match := _INPUT.fullmatch(line)):
            step.typed.append(match[1])
        elif step:
            step.printed.append(line)
    if step:
        yield step


def pattern(lines: list[str]) -> str:
    """A regular expression of lines in which `…` stands for anything, alone for any lines."""
    return "".join(
        "(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n" for line in lines
    )


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """The directory of someone who tries what the documents say."""
    (tmp_path / "examples").symlink_to(ROOT / "examples", target_is_directory=True)
    return tmp_path


def run(reader: Path, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], input=typed, cwd=reader, capture_output=True, text=True, encoding="utf-8",
        check=False, timeout=120,
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "100", "AYAEDGE_CACHE_DIR": str(reader / "cache")},
    )  # fmt: skip


@with_blocks("python")
def test_the_python_of_a_page_prints_what_the_page_says(page: Path, reader: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    result = run(reader, "-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == re.findall(r"# → (.*)$", code, re.MULTILINE)


@with_blocks("console")
def test_the_commands_of_a_page_print_what_the_page_says(
    page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reader)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("AYAEDGE_CACHE_DIR", str(reader / "cache"))
    for block in blocks(page, "console"):
        for step in steps(block):
            program, *arguments = shlex.split(step.command)
            assert program == "ayaedge"
            result = command_line.ayaedge(
                *arguments, typed="".join(f"{line}\n" for line in step.typed).encode()
            )
            assert result.returncode == 0, result.stderr
            messages = result.stderr.splitlines()
            answers = [line for line in step.printed if line not in messages]
            assert re.fullmatch(pattern(answers), result.stdout), f"{step.command}: {result.stdout}"


@pytest.mark.parametrize(
    ("lines", "printed", "fits"),
    [
        (["2675"], "2675\n", True),
        (["2675"], "2675\nstar\n", False),
        (["ayaedge …"], "ayaedge 0.1.0\n", True),
        (["…"], "", True),
        (["…", "end"], "a\nb\nend\n", True),
        (["…", "end"], "a\nb\n", False),
    ],
)
def test_an_ellipsis_stands_for_what_may_differ(lines: list[str], printed: str, fits: bool) -> None:
    assert bool(re.fullmatch(pattern(lines), printed)) == fits


def test_a_console_block_is_read_as_commands_what_is_typed_and_what_is_printed() -> None:
    block = "$ ayaedge chat\n> /image a.png\nattached\n[1 image] > What?\n2675\n$ ayaedge --version\n1\n"
    assert list(steps(block)) == [
        Step("ayaedge chat", ["/image a.png", "What?"], ["attached", "2675"]),
        Step("ayaedge --version", [], ["1"]),
    ]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MOST_README_LINES


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_a_link_of_a_page_leads_to_a_file(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text("utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    targets = [link.partition("#")[0] for link in links if "://" not in link]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_a_file_or_module_that_a_page_names_is_there(page: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", page.read_text("utf-8"))
    files = [name for text in code for name in re.findall(r"^(?:python )?([\w./-]+/[\w./-]+)", text)]
    folders = ("runtime", "export", "quant", "tests", "benchmarks", "examples", "docs")
    found = {name for name in files if name.split("/")[0] in folders and not (ROOT / name).exists()}
    modules = {name for text in code for name in re.findall(r"^(ayaedge(?:_export|_quant)?\.[\w.]+)$", text)}
    assert found | {name for name in modules if not is_module(name)} == set()


def is_module(name: str) -> bool:
    """Whether a dotted name is a room, a module, or a name that a module defines."""
    parts = name.split(".")
    folder = ROOT / {"ayaedge": "runtime", "ayaedge_export": "export", "ayaedge_quant": "quant"}[parts[0]]
    path = folder.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent / "__init__.py" if path.parent.is_dir() else path.parent.with_suffix(".py")
    return module.is_file() and re.search(rf"\b{parts[-1]}\b", module.read_text("utf-8")) is not None


@pytest.mark.parametrize("image", ["question.svg", "weight.svg"])
def test_a_drawing_names_modules_that_are_there(image: str) -> None:
    names = re.findall(r'font-family="monospace"[^>]*>([^<]+)<', (DOCS / image).read_text("utf-8"))
    stems = [stem.strip().rstrip("/").split("/") for name in names for stem in name.split(",")]
    known = {path.with_suffix("").parts for path in SOURCES} | {path.parent.parts for path in SOURCES}
    assert len(stems) > 10
    assert [stem for stem in stems if not any(parts[-len(stem) :] == tuple(stem) for parts in known)] == []


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of the second level."""
    parts = re.split(r"^## (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("name", commands())
def test_every_option_of_a_command_is_described(name: str) -> None:
    found = sections(DOCS / "command-line.md")
    text = found["Options that several commands share"] + found[f"ayaedge {name}"]
    command = commands()[name]
    options = {
        option
        for part in getattr(command, "commands", {name: command}).values()
        for parameter in part.params
        if parameter.param_type_name == "option"
        for option in [*parameter.opts[:1], *parameter.secondary_opts]
    }
    default = {"--help", "--cache", "--images", "--resume"}  # what is so without them
    assert {option for option in options - default if not re.search(rf"{option}\b", text)} == set()


def test_every_command_of_the_chat_is_described() -> None:
    text = (DOCS / "chat.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"`/{name}" not in text] == []


def test_every_option_of_a_question_is_described() -> None:
    text = sections(DOCS / "python.md")["Options of a question"]
    assert [name for name in AnswerKeywords.__annotations__ if f"`{name}" not in text] == []


@pytest.mark.parametrize("keyword", ["Taken", "Refused"])
def test_the_keywords_of_schemas_that_are_taken_and_refused_are_those_that_are_named(keyword: str) -> None:
    text = (DOCS / "structured-output.md").read_text("utf-8")
    (line,) = re.findall(rf"^- \*\*{keyword}\*\*(.*)$", text, re.MULTILINE)
    names = re.findall(r"`(\$?\w+)`", line)
    wrong = [name for name in names if is_taken(SCHEMAS[name]) != (keyword == "Taken")]
    assert len(names) > 5
    assert wrong == []


def is_taken(schema: dict[str, Any]) -> bool:
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    try:
        answer_options(response_format=form)
    except ayaedge.InvalidOptionError as error:
        assert "#/" in str(error)
        return False
    return True


def test_every_command_that_is_traced_is_named() -> None:
    text = sections(DOCS / "offline-and-privacy.md")["Check it"]
    assert [name for name in test_offline.COMMANDS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("package", test_rooms.FLOORS)
def test_every_room_is_explained(package: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition(f"/{package}`, from the top")[2]
    text = text.partition("\n\n")[0]
    rooms = set().union(*test_rooms.FLOORS[package]) - {"__main__"}
    assert {room for room in rooms if f"`{room}" not in text} == set()


def sentences() -> Iterator[str]:
    """All texts in the sources; what a formatted one inserts is a blank."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else " " for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_errors_that_are_explained_are_those_that_are_raised() -> None:
    headings = re.findall(r"^### (.*)$", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    quoted = [text for heading in headings for text in re.findall(r"`([^`]+)`", heading)]
    parts = {part.strip() for text in quoted if "ayaedge tune" not in text for part in text.split("…")} - {""}
    known = "\n".join(sentences())
    assert len(parts) > 20
    assert {part for part in parts if part not in known} == set()


def test_every_table_of_figures_names_its_command_date_and_processor() -> None:
    tables = re.split(r"^###? ", (DOCS / "speed-and-memory.md").read_text("utf-8"), flags=re.MULTILINE)
    faults = [
        text.splitlines()[0]
        for text in tables
        if "|---" in text
        and not (re.search(r"20\d\d-\d\d-\d\d", text) and re.search(r"Zen [34]|Xeon", text) and "`" in text)
    ]
    assert len(tables) > 8
    assert faults == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages, as `make docs` builds them."""
    pytest.importorskip("mkdocs", reason='the pages need mkdocs: pip install "ayaedge[dev]"')
    target = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)],
        capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return target


@pytest.mark.parametrize("package", [ayaedge, ayaedge_export], ids=lambda package: package.__name__)
def test_the_reference_has_every_public_name(site: Path, package: ModuleType) -> None:
    text = (site / "reference.html").read_text("utf-8")
    headings = set(re.findall(rf'id="{package.__name__}\.(\w+)"', text))
    assert headings == set(package.__all__)


def test_the_pages_fetch_nothing(site: Path) -> None:
    pages = "".join(path.read_text("utf-8") for path in site.glob("*.html"))
    fetched = re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="((?:https?:)?//[^"]+)"', pages)
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert fetched == []
    assert re.findall(r'url\(["\']?(?:https?:)?//|@import', styles) == []
