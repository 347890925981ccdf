from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ayaedge import BackendError, llama

FIRST = {
    "llama.cpp": "from ayaedge import llama; llama.library()",
    "the devices": "from ayaedge.hardware import devices; devices.decoder_gpus()",
    "the quantizer": "from ayaedge_quant.number_formats import _library; _library()",
    "the kernels": "from ayaedge_quant import number_formats as f; f._kernel_agrees(f.GgmlType.Q4_K, weighted=True)",
}
"""What may be the first to load ggml."""

EVERYTHING = """
import ctypes, re
from ayaedge import llama
from ayaedge.hardware import devices
from ayaedge_export.calibration.observed_decoder import _ggml as observed
from ayaedge_quant.number_formats import _library

def address(library, name):
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value

devices.decoder_gpus(), observed(), _library()
its_own = llama.library().llama_cpp._lib
registry, base = devices._registry()
libraries = {"ggml_backend_dev_count": [registry], "ggml_quantize_chunk": [_library()],
             "ggml_backend_dev_name": [base], "ggml_mul_mat": [observed(), base]}
for name, ours in libraries.items():
    for library in ours:
        assert address(library, name) == address(its_own, name), name
with open("/proc/self/maps") as maps:
    files = {line.split()[-1] for line in maps if "ggml" in line or "llama" in line}
names = sorted(re.sub(r"^.*/|[.]so.*$", "", file) for file in files)
print(*names)
"""


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is loaded")
@pytest.mark.parametrize("first", FIRST)
def test_there_is_one_copy_of_each_library_whoever_loads_first(first: str) -> None:
    code = f"{FIRST[first]}\n{EVERYTHING}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert {"libggml", "libggml-base", "libllama"} <= set(names)
    assert len(names) == len(set(names))


def test_where_it_is_not_installed_the_error_names_the_wheel_for_this_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)  # as if nothing had been installed
    for system, machine, kind in (
        ("Linux", "x86_64", "cpu"),
        ("Windows", "AMD64", "cpu"),
        ("Darwin", "arm64", "metal"),
    ):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        with pytest.raises(
            BackendError, match=rf"cannot be loaded .* --only-binary .*/whl/{kind} "
        ) as caught:
            llama.library.__wrapped__()
        assert '"llama-cpp-python~=0.3.36"' in str(caught.value)


def test_libraries_that_do_not_load_are_one_line_on_the_command_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ayaedge", "ask", "What?"], capture_output=True, text=True, check=False,
        env=os.environ | {"LLAMA_CPP_LIB_PATH": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "llama-cpp-python cannot be loaded" in " ".join(done.stderr.split())
