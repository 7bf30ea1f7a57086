"""Reads checkpoints: from files in any known format to a `HookedSAE`.

`formats/` holds one reader per format; `registry` picks the one that fits.
"""
