"""Makes the ONNX graphs of an artifact from a HookedSAE.

`trace` makes the graph, `passes` rewrites it, and `write` cuts it into the graphs of the artifact.
"""
