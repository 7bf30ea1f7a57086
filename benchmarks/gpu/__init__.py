"""What an SAE with all six hooks costs on an NVIDIA GPU, side by side; `python -m benchmarks.gpu` (`make gpu`)."""
