"""The proof with PyTorch: float64 truth, the original's own error, and the judgement of an artifact.

What is recorded here is what `runtime.parity` checks again on other machines.
"""
