"""The kernels as other compilers build them and as other processors run them: the bytes are the oracle's there too.

Debian's packages: clang; g++-aarch64-linux-gnu and qemu-user-static; g++-mingw-w64-x86-64-posix, wine and wine64.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from ayaedge_quant.blocks import CODES
from ayaedge_quant.gptq_sweep import sweep
from ayaedge_quant.number_formats import GgmlType, stock_encode

ROOT = Path(__file__).parents[2]
ENCODED = (GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K)

pytestmark = pytest.mark.slow

Blocks = NDArray[np.uint8]


class Machine(NamedTuple):
    """How programs are made for it, and run here."""

    compiler: str
    settings: tuple[str, ...] = ()
    """CMake's."""
    flags: tuple[str, ...] = ()
    """Of the program that calls the library."""
    starter: tuple[str, ...] = ()
    suffix: str = ".so"


MACHINES = {
    "GCC": Machine("g++"),
    "Clang": Machine("clang++"),
    "Arm": Machine(
        "aarch64-linux-gnu-g++",
        ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"),
        starter=("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"),
    ),
    "Arm, Clang": Machine(
        "clang++",
        (
            "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
            "-DCMAKE_CXX_COMPILER_TARGET=aarch64-linux-gnu",
        ),
        ("--target=aarch64-linux-gnu",),
        starter=("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"),
    ),
    "Windows": Machine(
        "x86_64-w64-mingw32-g++-posix",
        ("-DCMAKE_SYSTEM_NAME=Windows", "-DCMAKE_SYSTEM_PROCESSOR=AMD64", "-DCMAKE_MODULE_LINKER_FLAGS=-static"),
        ("-static",),
        starter=("wine",),
        suffix=".dll",
    ),
}  # fmt: skip


class Case(NamedTuple):
    """What a kernel is given, as kernel_runner.cpp reads it, and what it should give."""

    given: bytes
    expected: Blocks


def test_the_bytes_are_the_oracles(machine: Machine, tmp_path: Path) -> None:
    runner = build(machine, tmp_path)
    found = run_cases(machine, runner, [case.given for case in cases()])
    position = 0
    for case in cases():
        stop = position + case.expected.size
        assert np.array_equal(found[position:stop], case.expected.ravel())
        position = stop
    assert position == found.size


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    chosen = MACHINES[request.param]
    needed = ("cmake", chosen.compiler, *chosen.starter[:1])
    if missing := [tool for tool in needed if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    if "Arm" in request.param and not Path("/usr/aarch64-linux-gnu").exists():
        pytest.skip("needs the libraries of aarch64-linux-gnu")
    return chosen


def build(machine: Machine, directory: Path) -> Path:
    """The library as CMake builds it with every warning an error, and the program that calls it."""
    strict = "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Werror"
    compiler = f"-DCMAKE_CXX_COMPILER={machine.compiler}"
    run("cmake", "-S", ROOT, "-B", directory, compiler, strict, *machine.settings)
    run("cmake", "--build", directory, "--parallel", "2")
    runner = directory / ("runner.exe" if machine.suffix == ".dll" else "runner")
    run(
        machine.compiler, *machine.flags, "-std=c++17", "-O1", Path(__file__).with_name("kernel_runner.cpp"),
        directory / f"libayaedge_kernels{machine.suffix}", "-o", runner,
        *(() if machine.suffix == ".dll" else (f"-Wl,-rpath,{directory}",)),
    )  # fmt: skip
    return runner


def run_cases(machine: Machine, runner: Path, given: list[bytes]) -> Blocks:
    (runner.parent / "cases").write_bytes(b"".join(given))
    run(*machine.starter, runner, "cases", "blocks", directory=runner.parent)
    return np.fromfile(runner.parent / "blocks", np.uint8)


def run(*command: str | Path, directory: Path | None = None) -> None:
    done = subprocess.run(
        [*map(str, command)], cwd=directory, capture_output=True, text=True, check=False,
        env=os.environ | {"WINEDEBUG": "-all"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def cases() -> tuple[Case, ...]:
    return tuple(drawn_cases())


def drawn_cases() -> Iterator[Case]:
    """Every type and instruction set: encoded, and swept with grids that are searched and that are given."""
    rng = np.random.default_rng(0)
    rows, columns = 37, 512
    for kind in CODES:
        x = (0.02 * rng.standard_t(3, (rows, columns)) * np.exp(rng.standard_normal((rows, 1)))).astype(
            np.float32
        )
        importance = np.exp(2 * rng.standard_normal(columns)).astype(np.float32)
        feedback = (0.02 * rng.standard_normal((columns, columns))).astype(np.float32)
        starts = range(0, columns, 256)
        order = np.concatenate([start + rng.permutation(256) for start in starts]).astype(np.int32)
        grid = stock_encode(x, kind, importance)
        for widest in range(-1, 3):

            def header(*, sweeps: bool, refit: bool, kind: GgmlType = kind, widest: int = widest) -> bytes:
                numbers = [sweeps, refit, int(kind), kind.row_bytes(columns), rows, columns, widest]
                return np.array(numbers, "<i4").tobytes()

            arrays = x.tobytes() + importance.tobytes()
            swept = arrays + feedback.tobytes() + order.tobytes()
            expected = sweep(x, kind, feedback, importance, order=order, grid=grid)
            yield Case(header(sweeps=True, refit=False) + swept + grid.tobytes(), expected)
            if kind in ENCODED:
                yield Case(header(sweeps=False, refit=True) + arrays, grid)
                expected = sweep(x, kind, feedback, importance, order=order)
                yield Case(header(sweeps=True, refit=True) + swept, expected)
