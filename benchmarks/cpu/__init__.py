"""`make bench`: the SAE on a CPU beside PyTorch, torch.compile and a plain ONNX export."""
