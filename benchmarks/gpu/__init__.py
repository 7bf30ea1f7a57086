"""Measures the cost of an SAE's six hooks on a GPU, compared with PyTorch, torch.compile and CUDA graphs."""
