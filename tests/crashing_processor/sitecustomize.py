"""A processor on which llama.cpp's extra buffers end the process, as AMX does: for processes with this on PYTHONPATH.

Python imports a module of this name at its start. The signal is named by CRASHING_PROCESSOR.
"""

from __future__ import annotations

import os
import signal
from typing import Any

os.environ.setdefault(
    "OMP_WAIT_POLICY", "passive"
)  # as `ayaedge.llama` sets it, before the library is loaded

import llama_cpp
from llama_cpp import llama_cpp as bindings

_load = bindings.llama_model_load_from_file


def _load_or_die(path: bytes, parameters: Any) -> Any:
    if parameters.use_extra_bufts and not parameters.vocab_only:
        os.kill(os.getpid(), signal.Signals[os.environ.get("CRASHING_PROCESSOR", "SIGSEGV")])
    return _load(path, parameters)


for _module in (llama_cpp, bindings):
    _module.llama_model_load_from_file = _load_or_die  # type: ignore[attr-defined]
