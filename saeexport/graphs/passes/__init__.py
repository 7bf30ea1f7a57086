"""The rewrites of the traced graph, one per module."""
