"""The decoder: its GGUF file, and its formula in numpy."""
