"""Compares the hooks of small float32 SAEs with expected values.

Parity itself is judged by the budgets of `runtime/parity`. All other tests use this module.
"""

import numpy as np

HOOK_ATOL = 2e-5
"""Values of these SAEs have sizes up to 10, float32 rounds each to 5e-7, and the sums have up to 48 products."""


def assert_hooks_close(actual, expected):
    """Compare the hooks in `expected`: their shapes exactly, and their values within rounding."""
    for name, values in expected.items():
        assert actual[name].shape == tuple(values.shape), name
        np.testing.assert_allclose(actual[name], values, rtol=0, atol=HOOK_ATOL, err_msg=name)
