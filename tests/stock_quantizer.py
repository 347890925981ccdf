"""llama.cpp's own quantizer, to compare files with."""

from __future__ import annotations

import ctypes
from pathlib import Path

import gguf

from ayaedge import llama
from ayaedge_quant.imatrix import ImportanceMatrix
from ayaedge_quant.recipes import FILE_TYPE, DecoderFormat, parse_type


def stock_quantize(
    source: Path,
    target: Path,
    fmt: DecoderFormat,
    matrix: ImportanceMatrix | None = None,
    overrides: dict[str, str] | None = None,
) -> None:
    """Quantize the float GGUF file `source` to `target` as `llama-quantize`, with `--imatrix` and `--tensor-type`."""
    library = llama.library()
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = FILE_TYPE[fmt]
    parameters.nthread, parameters.allow_requantize = 2, True
    if matrix is not None:
        importances = {name: matrix.entries[name].mean_squares for name in matrix.entries}
        pointer = ctypes.POINTER(ctypes.c_float)
        entries = [
            library.llama_model_imatrix_data(name.encode(), values.ctypes.data_as(pointer), len(values))
            for name, values in importances.items()
        ]
        array = (library.llama_model_imatrix_data * (len(entries) + 1))(*entries)  # the last one is empty
        parameters.imatrix = array
    if overrides:
        entry = library.llama_model_tensor_override
        listed = [entry(pattern.encode(), int(parse_type(kind))) for pattern, kind in overrides.items()]
        parameters.tt_overrides = (entry * (len(listed) + 1))(*listed)  # the last one, empty, ends the list
    status = library.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    assert status == 0


def tensors_of(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and data of every tensor of a GGUF file."""
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}
