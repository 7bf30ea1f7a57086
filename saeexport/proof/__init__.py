"""Proves parity with PyTorch: computes the float64 truth and the original's own error, and judges an artifact by them.

`runtime.parity` checks the recorded proof again on other machines, without PyTorch.
"""
