"""The prefill kernels for Arm, run by QEMU: they give the scalar kernel's bits, and only where the processor has them.

Debian's packages: g++-aarch64-linux-gnu and qemu-user-static; clang.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SYSROOT = Path("/usr/aarch64-linux-gnu")
COMPILERS = {
    "GCC": ("aarch64-linux-gnu-g++", ()),
    "Clang": ("clang++", ("--target=aarch64-linux-gnu",)),
}
PROCESSORS = {
    "cortex-a72": ["scalar"],
    "neoverse-n1": ["scalar", "neon-dotprod"],
    "max": ["scalar", "neon-dotprod", "neon-i8mm"],
}

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=COMPILERS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`arm_prefill.cpp` with the library as CMake builds it, every warning an error."""
    compiler, target = COMPILERS[request.param]
    needed = ("cmake", compiler, "qemu-aarch64-static")
    if missing := [tool for tool in needed if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    if not SYSROOT.exists():
        pytest.skip(f"needs the libraries of {SYSROOT.name}")
    directory = tmp_path_factory.mktemp("arm")
    flags = " ".join((*target, "-Wall -Wextra -Wpedantic -Werror"))
    arm = (
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
    )
    run("cmake", "-S", ROOT, "-B", directory, *arm, f"-DCMAKE_CXX_FLAGS={flags}")
    run("cmake", "--build", directory, "--parallel", "2", "--target", "ayaedge_prefill")
    source, library = Path(__file__).with_name("arm_prefill.cpp"), directory / "libayaedge_prefill.so"
    linked = (source, library, f"-Wl,-rpath,{directory}", "-o", directory / "program")
    run(compiler, *target, "-std=c++17", "-O2", *linked)
    return directory / "program"


@pytest.mark.parametrize("processor", PROCESSORS)
def test_each_kernel_of_an_arm_processor_gives_the_scalar_ones_bits(program: Path, processor: str) -> None:
    printed = run("qemu-aarch64-static", "-cpu", processor, "-L", SYSROOT, program)
    assert printed.split() == PROCESSORS[processor]
