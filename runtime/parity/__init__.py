"""The proof that an artifact computes what PyTorch did, without PyTorch.

Reference values, budgets, verdicts, the golden batch, and `verify`, which puts them together.
"""
