"""References that a test writes down number by number, without an SAE."""

import numpy as np

from runtime.artifact.manifest import Errors
from runtime.artifact.names import HOOK_NAMES
from runtime.parity.reference import Reference, SteeredReference, derive_outputs
from runtime.session.interventions import Intervention

INPUT, PRE, POST, RECONS, ERROR, OUTPUT = HOOK_NAMES


def make_reference(acts_pre, acts_post=None, *, true_post=None, x=None, budget=0.01, use_error_term=True, **more):
    """Return a reference whose decoder adds up the activations, in each of two dimensions.

    Args:
        acts_pre: The preactivations of the original, which are the truth as well.
        acts_post: The activations of the original; those of a ReLU if None.
        true_post: The truth of the activations; `acts_post` if None.
        x: The input, `(tokens, 2)`; ones if None.
        budget: The budget of every hook, for tokens and elements; None calibrates it by the original.
        use_error_term: Whether the output is the reconstruction plus the error.
        more: Further fields of `Reference`.
    """
    pre = np.array(acts_pre, np.float32)
    post = np.maximum(pre, 0) if acts_post is None else np.array(acts_post, np.float32)
    x = np.ones((len(pre), 2), np.float32) if x is None else np.array(x, np.float32)
    against = x if more.get("target") is None else more["target"]
    true = post.astype(np.float64) if true_post is None else np.array(true_post, np.float64)
    hooks = {}
    for name, acts, dtype in (("original", post, np.float32), ("truth", true, np.float64)):
        recons = decoded(acts)
        hooks[name] = {PRE: pre.astype(dtype), POST: acts.astype(dtype)} | {
            hook: y.astype(dtype) for hook, y in derive_outputs(recons, against - recons, use_error_term).items()
        }
    recorded = None if budget is None else dict.fromkeys(HOOK_NAMES[1:], Errors(budget, budget))
    return Reference({INPUT: x, **hooks["original"]}, hooks["truth"], use_error_term, recorded=recorded, **more)


def decoded(acts_post):
    """Return what the decoder makes of activations, `(tokens, 2)`."""
    return np.repeat(acts_post.sum(axis=1, keepdims=True), 2, axis=1)


def make_steered(clean, ids, scale, shift):
    """Return the reference of the same inputs under an intervention."""
    intervention = Intervention(ids, scale, shift)
    hooks = []
    for given in (clean.original, clean.truth):
        acts = intervention(given[POST])
        derived = derive_outputs(decoded(acts), given[ERROR], clean.use_error_term)
        hooks.append({**given, POST: acts, **derived})
    return SteeredReference(
        *hooks, clean.use_error_term, clean.target, clean.dtype, clean.recorded, rounded=clean.rounded,
        clean=clean, intervention=intervention,
    )  # fmt: skip
