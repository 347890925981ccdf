"""The decoder: the llama.cpp context and what goes in and out of it."""
