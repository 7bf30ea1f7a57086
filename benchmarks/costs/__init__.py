"""Measures the cost of an export, of an intervention and of each node of a graph."""
