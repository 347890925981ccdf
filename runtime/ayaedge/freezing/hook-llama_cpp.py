"""PyInstaller's hook for llama-cpp-python: its libraries, which it opens by their place."""

from PyInstaller.utils.hooks import collect_dynamic_libs

binaries = collect_dynamic_libs("llama_cpp")
excludedimports = ["huggingface_hub", "openai", "PIL", "requests", "torch", "transformers"]
