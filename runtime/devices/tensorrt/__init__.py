"""Running graphs with TensorRT: its options, its libraries and its engine cache."""
