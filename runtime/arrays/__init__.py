"""Memory: numpy arrays, tensors that numpy cannot hold, and DLPack between libraries.

Knows nothing of SAEs. Everything that moves through a session is one of these types.
"""
