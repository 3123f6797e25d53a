"""Networks in ONNX files, as torch modules."""
