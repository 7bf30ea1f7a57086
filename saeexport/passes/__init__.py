"""Rewrites of the traced graph, one per file, each from model to model."""
