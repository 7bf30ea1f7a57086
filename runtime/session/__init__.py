"""`SAESession` and what its calls are made of: batches, graphs, hooks, interventions, top features.

Reproduces the calls of the PyTorch original on top of `artifact` and `devices`.
"""
