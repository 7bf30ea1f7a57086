"""Measures the losses of half precision and int8 weights, and how far the results of correct programs differ."""
