"""What an SAE with all six hooks costs on an NVIDIA GPU, compared with PyTorch, torch.compile and CUDA graphs."""
