"""Combining the decoder of a checkpoint with a language model, while it is read."""
