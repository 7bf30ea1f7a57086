"""Running graphs on an NVIDIA GPU: driver calls, device memory, bindings and CUDA graphs."""
