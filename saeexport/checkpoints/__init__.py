"""Reads checkpoints of every known format as a `HookedSAE`.

`formats/` holds one reader per format, and `registry` picks the reader that recognises a path.
"""
