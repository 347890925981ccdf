"""PyInstaller's hook for ayaedge: the demonstration model and our kernels, and nothing that only exports."""

from PyInstaller.utils.hooks import can_import_module, collect_data_files, collect_submodules

from ayaedge.decoder.acceleration import library_path

_OTHER_PROGRAMS = (
    "ayaedge.__main__", "ayaedge.bench", "ayaedge.cli", "ayaedge.freezing", "ayaedge.ray", "ayaedge.server"
)  # fmt: skip
"""Whoever freezes one of them imports it."""

datas = collect_data_files("ayaedge", includes=["demo/*"])
binaries = [(str(library_path()), "ayaedge/decoder")]
# what is loaded with its first use, and what is imported by its name alone
hiddenimports = collect_submodules("ayaedge", filter=lambda name: not name.startswith(_OTHER_PROGRAMS))
hiddenimports += [name for name in ("pillow_heif",) if can_import_module(name)]
excludedimports = [  # whoever exports, serves agents, writes Parquet or uses Ray names these himself
    "ayaedge_export", "ayaedge_quant", "gguf", "mcp", "onnx", "optimum", "py3langid", "pyarrow", "ray", "sacrebleu",
    "safetensors", "torch", "transformers",
]  # fmt: skip
