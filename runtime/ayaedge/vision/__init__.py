"""The vision tower: encoder and ONNX Runtime session."""
