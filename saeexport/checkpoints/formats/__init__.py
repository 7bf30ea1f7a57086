"""One module per checkpoint format, each with the keys and tensors that it reads."""
