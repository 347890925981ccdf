"""What an answer may look like: JSON schemas and choices as grammars in GBNF, llama.cpp's notation."""
