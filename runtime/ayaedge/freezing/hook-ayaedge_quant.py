"""PyInstaller's hook for a program that exports: our kernels; PyTorch, which only makes it faster, stays out."""

from importlib import import_module

kernels = import_module("ayaedge_quant.kernels")  # runs only in programs that have the package
binaries = [(str(kernels.library_path()), "ayaedge_quant")]
excludedimports = ["torch"]
