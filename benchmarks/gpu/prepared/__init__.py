"""The artifacts that the GPU benchmark reads, and the module that exports them."""
