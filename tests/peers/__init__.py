"""Compares the checkpoint readers with the libraries that wrote the checkpoints; `make test-peers` runs these tests."""
