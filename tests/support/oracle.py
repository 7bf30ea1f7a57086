"""The SAE in float64 NumPy, written independently of the code that it is compared with."""

import numpy as np

RTOL, ATOL = 1e-12, 1e-13
"""How far two correct programs in float64 may differ on a small SAE. Each of a sum's 96 products is at most about 10
and is rounded by 2^-53 of itself, which makes 96 * 10 * 2^-53 = 1e-13. The relative part is for larger values."""


def six_hooks(weights, x, use_error_term, heads=False):
    """Return the six hook tensors of `x`, `(tokens, d_in)` or with `heads` `(tokens, n_heads, d_head)`, in float64."""
    w = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = np.asarray(x, np.float64)
    flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2]) if heads else x
    acts_pre = np.matmul(flat - w["b_dec"][None, :], w["W_enc"]) + w["b_enc"][None, :]
    acts_post = np.where(acts_pre > 0, acts_pre, 0.0)
    recons = (np.matmul(acts_post, w["W_dec"]) + w["b_dec"][None, :]).reshape(x.shape)
    error = x - recons
    return {
        "hook_sae_input": x,
        "hook_sae_acts_pre": acts_pre,
        "hook_sae_acts_post": acts_post,
        "hook_sae_recons": recons,
        "hook_sae_error": error,
        "hook_sae_output": recons + error if use_error_term else recons,
    }
