"""PyInstaller's hook for ONNX Runtime: its libraries; its tools for training and export stay out."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("onnxruntime")
excludedimports = ["onnx", "torch", "transformers"]
