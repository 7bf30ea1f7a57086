"""From a traced HookedSAE to the ONNX graphs of an artifact.

`trace` makes the graph, `passes` rewrite it, `write` cuts it into the graphs of the artifact.
"""
