"""Measures the cost of an SAE's six hooks on a CPU, compared with PyTorch, torch.compile and a plain ONNX export."""
