"""The measurements on the device: the contenders, the limit, other ways to write the graph, and each node."""
