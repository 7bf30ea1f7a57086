"""Grafts SAEs into the ONNX model of their language model."""
