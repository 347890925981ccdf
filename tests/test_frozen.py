"""Programs that PyInstaller has frozen with this package's hooks, on a computer without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
IMAGE = EXAMPLES / "pictures" / "six-cells.png"
QUESTION = "What number is at the bottom left?"
SOMEBODY = 12345
"""A user that the system does not know: without a home, and without rights in the program's folder."""
MOST_BYTES = {"describe": 300e6}
"""Here, where everything is installed; with the package alone it has 170 MB, with PyTorch 940."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can start a process of another user"
    ),
]  # fmt: skip

Freeze = Callable[..., Path]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it, its entry points included."""
    site = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, ROOT)
    return site


@pytest.fixture(scope="module")
def freeze(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Freeze:
    """Freezes a program, into a directory with spaces and letters that are not Latin."""
    work = tmp_path_factory.mktemp("frozen") / "Bücher und 本"
    for directory in [work, *work.parents]:
        if directory != Path("/tmp"):  # where everybody may enter already
            directory.mkdir(exist_ok=True)
            directory.chmod(directory.stat().st_mode | 0o755)

    def freeze(program: str, *options: str) -> Path:
        target = work / "-".join([program, *options]).replace("--", "")
        found = target / program
        if found.exists():
            return found / program if found.is_dir() else found
        path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        run(
            sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level", "WARN", *options,
            "--distpath", target, "--workpath", target / "work", "--specpath", target / "work",
            EXAMPLES / f"{program}.py",
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        return found / program if found.is_dir() else found

    return freeze


def run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


def somebody(*command: str | Path, **variables: str) -> list[str]:
    """A command of another user, with nothing in its environment and no Python in its path."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    user = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups"]
    return [*user, "env", "-i", "PATH=/nowhere", "LANG=C.UTF-8", *settings, *map(str, command)]


def size(program: Path) -> int:
    folder = program.parent
    files = folder.rglob("*") if (folder / "_internal").is_dir() else [program]
    return sum(path.stat().st_size for path in files if path.is_file() and not path.is_symlink())


def test_a_console_program_answers_with_nothing_installed_and_nothing_in_its_environment(
    freeze: Freeze,
) -> None:
    program = freeze("describe", "--onedir")
    assert size(program) < MOST_BYTES["describe"]
    done = subprocess.run(
        somebody(program, IMAGE, "-q", QUESTION), check=False, capture_output=True, text=True, cwd="/"
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, [str(IMAGE), "  2675"]), done.stderr


def test_a_bundle_next_to_the_program_is_found_by_its_name(freeze: Freeze) -> None:
    program = freeze("describe", "--onedir")
    shutil.copytree(ROOT / "runtime" / "ayaedge" / "demo", program.parent / "bundles" / "small")
    done = subprocess.run(
        somebody(program, IMAGE, "-q", QUESTION, "-m", "small"),
        check=False, capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()[1:]) == (0, ["  2675"]), done.stderr
