"""The TensorRT backend: provider options, libraries and the engine cache."""
