"""What a session needs of an NVIDIA GPU beside ONNX Runtime: streams, memory and their order."""
