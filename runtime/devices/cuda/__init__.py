"""The CUDA backend: driver calls, device memory, bindings and CUDA graphs."""
