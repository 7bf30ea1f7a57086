"""The PyTorch original: `HookedSAE`, its architectures, and how it is run.

The six hooks and the equations are defined here; everything else is judged against this wing.
"""
