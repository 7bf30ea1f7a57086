"""Devices and their backends: CPU, CUDA and TensorRT behind one protocol, `Backend`.

`select` finds a device, `start` starts ONNX Runtime sessions on it, and a backend runs batches through them in blocks.
"""
