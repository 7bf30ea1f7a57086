"""Small SAEs and inputs, and where the repository and its artifacts are."""

from pathlib import Path

import numpy as np
import torch

from saeexport import HookedSAE

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny"
MINILM = ROOT / "models" / "minilm-layer3"
HOOKS = [f"hook_sae_{name}" for name in ("input", "acts_pre", "acts_post", "recons", "error", "output")]


def make_sae(d_in=6, d_sae=16, hook_name="blocks.0.hook_resid_pre", use_error_term=True, seed=0, **more):
    """Return an SAE with biases, about a third of its features on for standard normal inputs."""
    cfg = dict(d_in=d_in, d_sae=d_sae, hook_name=hook_name, use_error_term=use_error_term, seed=seed, device="cpu")
    sae = HookedSAE({**cfg, **more})
    draws = np.random.default_rng(seed)
    with torch.no_grad():
        for bias, center in ((sae.b_enc, -0.3), (sae.b_dec, 0.0)):
            bias.copy_(torch.from_numpy(draws.normal(center, 0.5, bias.shape)))
    return sae


def normal(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def contents(folder):
    """Return the bytes of every file of a folder."""
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}
