"""The vision tower and connector as ONNX graphs, and their formula in numpy."""
