"""The ways to run an SAE on a CPU that are compared."""
