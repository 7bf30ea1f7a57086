"""`SAESession` and its parts: batches, routing, graphs, passes, hook functions, interventions, top features, weights.

It reproduces the calls of the PyTorch original on top of `artifact` and `devices`.
"""
