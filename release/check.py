"""The release checklist: `make release-check`; every step says what it found, and the first that fails ends it.

Builds what a release consists of, and judges it as a stranger's computer would: an environment without a compiler and
without a network. Needs the extra `release` and, for the network namespace, Linux with `unshare`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "release"
WHEELS = OUT / "dist"
WHEELHOUSE = OUT / "wheelhouse"
MOST_BYTES = 8_000_000
NO_NETWORK = (shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--net")
BARE = {"PATH": "/nowhere", "LANG": "C.UTF-8"}
"""The whole environment of what a user's computer does here: no compiler can be found in it."""


class Failed(Exception):  # noqa: N818
    """A step found something that must not be released."""


def run(*command: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT) -> str:
    """What a command prints; Failed with all of it if it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=env, cwd=cwd)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command[:4]))} ...:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def check_versions() -> str:
    """The package, the changelog's newest section and nothing left under Unreleased."""
    text = (ROOT / "runtime" / "ayaedge" / "__init__.py").read_text("utf-8")
    version = re.search(r'^__version__ = "(.+?)"', text, re.MULTILINE)
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    dated = re.search(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", changelog, re.MULTILINE)
    unreleased = changelog.partition("## [Unreleased]")[2].partition("\n## [")[0].strip()
    if version is None or dated is None or version[1] != dated[1]:
        raise Failed(
            f"the package is {version and version[1]}, the changelog's newest is {dated and dated[1]}"
        )
    if unreleased:
        raise Failed(f"the changelog has lines under Unreleased: {unreleased[:100]} ...")
    return f"{version[1]} of {dated[2]}"


def build_docs() -> str:
    """Strictly: a link that leads nowhere is an error."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    run(
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        OUT / "docs",
        env=environment,
    )
    return f"{len(list((OUT / 'docs').rglob('*.html')))} pages"


def build_wheel() -> str:
    """The source archive, the wheel from it, with the tag of the oldest system that it fits."""
    shutil.rmtree(WHEELS, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", WHEELS, ROOT)
    (built,) = WHEELS.glob("*.whl")
    if sys.platform == "linux":
        tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", WHEELS, built, env=tools)
        built.unlink()
    run(sys.executable, "-m", "twine", "check", "--strict", *WHEELS.iterdir())
    return ", ".join(f"{path.name} {_checked(path) / 1e6:.1f} MB" for path in sorted(WHEELS.iterdir()))


def _checked(path: Path) -> int:
    """The size of what is released; Failed if it is too large, or the package or its licence is missing."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            names = wheel.namelist()
    else:
        with tarfile.open(path) as archive:
            names = archive.getnames()
    for part in "ayaedge/demo/decoder.gguf", "ayaedge/freezing/hook-ayaedge.py", "LICENSE":
        if not any(name.endswith(part) for name in names):
            raise Failed(f"{path.name} has no {part}")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise Failed(f"{path.name} has {size} bytes, at most {MOST_BYTES} are wanted")
    return size


def fill_wheelhouse() -> str:
    """Everything that an installation takes, as wheels: the recipe of docs/install.md for a machine never online."""
    shutil.rmtree(WHEELHOUSE, ignore_errors=True)
    (wheel,) = WHEELS.glob("*.whl")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--prefer-binary", "--wheel-dir", WHEELHOUSE, wheel)
    sizes = [path.stat().st_size for path in WHEELHOUSE.iterdir()]
    return f"{len(sizes)} wheels, {sum(sizes) / 1e6:.0f} MB"


def install_offline(python: Path) -> str:
    """In a new environment, with nothing in the path and without a network: install, then the first answer."""
    offline = ("pip", "install", "--quiet", "--no-index", "--find-links", WHEELHOUSE, "ayaedge")
    run(*NO_NETWORK, python, "-m", *offline, env=BARE)
    with tempfile.TemporaryDirectory() as home:
        answer = ROOT / "tests" / "first_answer.py"
        return run(*NO_NETWORK, python, answer, env=BARE | {"HOME": home}, cwd=Path(home)).strip()


def list_licences(python: Path) -> str:
    """The licence of everything that was installed; Failed for one that does not say."""
    code = (
        "import json; from importlib.metadata import distributions as d; "
        "print(json.dumps({m['Name']: [m['Version'], m.get('License-Expression') or '', m.get('License') or '', "
        "*[c for c in m.get_all('Classifier', []) if c.startswith('License ::')]] for m in (x.metadata for x in d())}))"
    )
    found = json.loads(run(python, "-c", code, env=BARE))
    lines = []
    for name, (version, *said) in sorted(found.items(), key=lambda item: item[0].lower()):
        licence = next(
            (text.strip().splitlines()[0].removeprefix("License :: ") for text in said if text.strip()), ""
        )
        if licence in ("", "UNKNOWN"):
            raise Failed(f"{name} {version} does not say its licence")
        lines.append(f"{name} {version}: {licence}")
    (OUT / "licences.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return f"{len(lines)} packages in {(OUT / 'licences.txt').relative_to(ROOT)}"


def write_sbom(python: Path) -> str:
    """The list of parts in CycloneDX's form, of the same environment."""
    target = OUT / "sbom.cdx.json"
    run(
        sys.executable,
        "-m",
        "cyclonedx_py",
        "environment",
        "--output-reproducible",
        "--output-file",
        target,
        python,
    )
    parts = json.loads(target.read_text("utf-8"))
    if not any(part["name"].replace("_", "-") == "llama-cpp-python" for part in parts["components"]):
        raise Failed(f"{target} does not name llama-cpp-python")
    return f"CycloneDX {parts['specVersion']}, {len(parts['components'])} parts in {target.relative_to(ROOT)}"


def prove_offline() -> str:
    """The tests that watch every command with a tracer of system calls."""
    lines = (
        run(sys.executable, "-m", "pytest", "-q", "tests/test_offline.py", "-W", "ignore")
        .strip()
        .splitlines()
    )
    return lines[-1]


def main() -> None:
    """All steps in their order."""
    OUT.mkdir(parents=True, exist_ok=True)
    environment = OUT / "environment"
    python = environment / "bin" / "python"
    steps: list[tuple[str, Callable[[], str]]] = [
        ("versions agree", check_versions),
        ("documents", build_docs),
        ("source archive and wheel", build_wheel),
        ("wheelhouse", fill_wheelhouse),
        ("a bare environment", lambda: _make(environment)),
        ("first answer, no compiler, no network", lambda: install_offline(python)),
        ("licences", lambda: list_licences(python)),
        ("list of parts", lambda: write_sbom(python)),
        ("offline proof", prove_offline),
    ]
    for name, step in steps:
        try:
            print(f"{name}: {step()}", flush=True)
        except Failed as failure:
            sys.exit(f"{name}: FAILED\n{failure}")


def _make(environment: Path) -> str:
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, with_pip=True)
    return f"Python {sys.version.split()[0]}"


if __name__ == "__main__":
    main()
