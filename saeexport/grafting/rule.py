"""Provisional."""

import numpy as np

from runtime.arrays.tensor import Array


def error_of(y: Array, reference: Array, mask: Array) -> float:
    y, reference = (
        a[mask] if a.shape[:2] == mask.shape else a for a in (y.astype(np.float64), reference.astype(np.float64))
    )
    y, reference = (a.reshape(len(a), -1) for a in (y, reference))
    return float((np.linalg.norm(y - reference, axis=1) / np.maximum(np.linalg.norm(reference, axis=1), 1e-30)).max())


def budget_of(own: float, dtype: str) -> float:
    return 4 * own + {"float32": 2.0**-20, "float16": 2.0**-8}[dtype]
