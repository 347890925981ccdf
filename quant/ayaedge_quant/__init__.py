"""Number formats: ggml's block encoders, recipes of types, int8 for the vision graph, and our own kernels.

Knows arrays and formats only; checkpoints and bundles belong to `ayaedge_export` and `ayaedge`.
"""
