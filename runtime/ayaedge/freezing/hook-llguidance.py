"""PyInstaller's hook for llguidance: it asks for its own version, and knows frameworks that nobody needs here."""

from PyInstaller.utils.hooks import copy_metadata

datas = copy_metadata("llguidance")
excludedimports = ["llama_cpp", "mlx", "tiktoken", "torch", "transformers"]
