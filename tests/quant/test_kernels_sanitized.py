"""All kernels under the address and undefined-behaviour sanitizers, called by `sanitized_kernels.cpp`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SANITIZE = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as CMake builds it, with the sanitizers, and a program that calls it."""
    for tool in ("cmake", "g++"):
        if sys.platform != "linux" or shutil.which(tool) is None:
            pytest.skip(f"the sanitized kernels need Linux and {tool}")
    directory = tmp_path_factory.mktemp("sanitized")
    options = f"-Wall -Wextra -Wpedantic -Werror -g1 {SANITIZE}"
    run("cmake", "-S", ROOT, "-B", directory, "-DCMAKE_CXX_COMPILER=g++", f"-DCMAKE_CXX_FLAGS={options}")
    run("cmake", "--build", directory, "--parallel", "2")
    source, program = Path(__file__).with_name("sanitized_kernels.cpp"), directory / "driver"
    library = directory / "libayaedge_kernels.so"
    run(
        "g++",
        "-std=c++17",
        "-O1",
        *SANITIZE.split(),
        source,
        library,
        f"-Wl,-rpath,{directory}",
        "-o",
        program,
    )
    return program


def test_no_sanitizer_complains(driver: Path) -> None:
    assert run(driver) == "no complaints\n"


def test_the_array_form_needs_no_extension_of_the_language(tmp_path: Path) -> None:
    """Which is what other compilers than GCC and Clang get."""
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    variant = ("-DAYAEDGE_ARRAYS", "-DAYAEDGE_LANES=8", "-DAYAEDGE_VARIANT=arrays")
    strict = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pedantic-errors")
    for name in ("encode_lanes.cpp", "sweep_lanes.cpp"):
        source = ROOT / "quant" / "kernels" / name
        run("g++", *strict, *variant, "-c", source, "-o", tmp_path / "lanes.o")
