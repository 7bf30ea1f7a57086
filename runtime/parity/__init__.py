"""The proof, without PyTorch, that an artifact computes what the original computes.

`reference` has the budgets and `decisions` the rule for features near a threshold. `judge` compares the outputs of a
graph with a reference and `proof` does it for all graphs of an artifact. `golden` stores a reference in the artifact,
and `verify` checks an artifact against it. `fidelity` is for artifacts of lower precision.
"""
