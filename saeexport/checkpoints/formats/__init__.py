"""One module per on-disk format, each with the keys and tensors that it understands."""
