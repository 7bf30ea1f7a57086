"""Where graphs run: the CPU, CUDA and TensorRT behind one protocol, `Backend`.

Finds a device, starts ONNX Runtime sessions on it, and moves blocks of tokens through them.
"""
