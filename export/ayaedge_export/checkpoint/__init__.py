"""Checkpoint directories: files, configuration, tensors, tokenizer."""
