"""Measures the cost of an SAE on a CPU in three uses, compared with other ways to run it."""
