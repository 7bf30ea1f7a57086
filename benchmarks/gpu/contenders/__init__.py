"""The ways to run an SAE on a GPU that are compared, and the check that they compute the same values."""
