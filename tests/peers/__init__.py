"""The readers of checkpoints beside the libraries whose checkpoints they read; `make test-peers` runs these."""
