"""Arrays: dtypes, numpy arrays on the host, tensors on a GPU, and DLPack between libraries.

This wing does not depend on SAEs. Everything that moves through a session is one of these types.
"""
