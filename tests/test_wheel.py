"""The wheel alone, in an environment of its own: what a user gets from `pip install ayaedge`."""

from __future__ import annotations

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "examples" / "pictures" / "six-cells.png"

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT)
    (built,) = directory.glob("*.whl")
    return built


def test_it_holds_the_three_packages_the_kernels_and_the_demonstration_model(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("ayaedge", "ayaedge_export", "ayaedge_quant"):
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names
    assert {f"ayaedge/demo/{name}" for name in ("manifest.json", "vision.onnx", "decoder.gguf")} <= names
    assert {
        f"ayaedge/server/static/{name}" for name in ("index.html", "page.css", "page.js", "icon.svg")
    } <= names
    assert any(name.startswith("ayaedge_quant/libayaedge_kernels.") for name in names)
    assert any(name.startswith("ayaedge/decoder/libayaedge_prefill.") for name in names)
    assert wheel.stat().st_size < 5_000_000


def test_installed_alone_it_answers_and_says_how_to_get_the_exporter(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--quiet", wheel)
    answer = run(scripts / "ayaedge", "ask", "--image", IMAGE, "What number is at the bottom left?")
    assert answer == "2675\n"
    export = subprocess.run(
        [scripts / "ayaedge", "export", ROOT / "examples" / "tiny-aya-vision"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert export.returncode == 1
    assert 'pip install "ayaedge[export]"' in export.stderr
