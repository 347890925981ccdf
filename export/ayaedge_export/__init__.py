"""Checkpoints to bundles: reading weights, building the vision graph, writing the decoder, proving both."""
