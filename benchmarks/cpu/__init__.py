"""What an SAE with all six hooks costs on a CPU, compared with PyTorch, torch.compile and a plain ONNX export."""
