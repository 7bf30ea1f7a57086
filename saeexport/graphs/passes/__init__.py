"""The passes that rewrite the traced graph, one per module."""
