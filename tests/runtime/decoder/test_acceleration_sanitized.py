"""The prefill kernels under the address, undefined-behaviour and thread sanitizers, by `sanitized_prefill.cpp`.

AMX is emulated, where the processor has the rest of its kernel's instructions.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SANITIZERS = {
    "memory": "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all",
    "threads": "-fsanitize=thread",
}

pytestmark = pytest.mark.slow


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", SANITIZERS)
def test_no_sanitizer_complains_of_the_prefill_kernels(kind: str, tmp_path: Path) -> None:
    for tool in ("cmake", "g++"):
        if sys.platform != "linux" or shutil.which(tool) is None:
            pytest.skip(f"the sanitized kernels need Linux and {tool}")
    sanitize = SANITIZERS[kind]
    options = f"-Wall -Wextra -Wpedantic -Werror -g1 -DAYAEDGE_EMULATED_TILES {sanitize}"
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DCMAKE_CXX_COMPILER=g++", f"-DCMAKE_CXX_FLAGS={options}")
    run("cmake", "--build", tmp_path, "--parallel", "2", "--target", "ayaedge_prefill")
    source, program = Path(__file__).with_name("sanitized_prefill.cpp"), tmp_path / "driver"
    library = tmp_path / "libayaedge_prefill.so"
    linked = (library, f"-Wl,-rpath,{tmp_path}", "-o", program)
    run("g++", "-std=c++17", "-O1", *sanitize.split(), source, *linked)
    assert run(program) == "no complaints\n"
