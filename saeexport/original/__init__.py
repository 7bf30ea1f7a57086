"""The PyTorch original: `HookedSAE`, its architectures, and functions that run it.

The six hooks and their equations are defined here, and every artifact is judged against them.
"""
