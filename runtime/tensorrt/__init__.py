"""Running graphs by TensorRT, through ONNX Runtime's provider for it."""
