"""Small SAEs of every architecture with random parameters."""

import numpy as np
import torch

from saeexport.original.architectures import ARCHITECTURES
from tests.support.samples import normal

D_IN, D_SAE, D_OUT = 10, 48, 7
OPTIONS = {
    "topk": {"k": 9},
    "abstopk": {"k": 9},
    **{name: {"d_out": D_OUT, "hook_name_out": "blocks.0.hook_mlp_out"} for name in ARCHITECTURES if "coder" in name},
    **{name: {"d_out": D_OUT, "k": 9} for name in ARCHITECTURES if name.startswith("topk_")},
}
NORMALIZED = [name for name in ARCHITECTURES if "coder" not in name]
CASES = [
    *((name, {}) for name in ARCHITECTURES),
    *((name, {"use_error_term": True}) for name in ARCHITECTURES),
    *((name, {"apply_b_dec_to_input": False}) for name in ("standard", "gated", "topk")),
    *((name, {"normalize_activations": how, "use_error_term": True})
      for name in NORMALIZED for how in ("layer_norm", "constant_norm_rescale")),
]  # fmt: skip


def sae_of(architecture, **more):
    """Return an SAE of an architecture with random parameters, with about a third of the features on."""
    cfg = dict(d_in=D_IN, d_sae=D_SAE, hook_name="blocks.0.hook_resid_pre", seed=0, device="cpu")
    sae = ARCHITECTURES[architecture]({**cfg, **OPTIONS.get(architecture, {}), **more})
    draws = np.random.default_rng(3)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            low, high = {"threshold": (0.1, 0.6), "W_skip": (-0.5, 0.5)}.get(name, (-0.4, 0.3))
            if parameter.ndim == 1 or name == "W_skip":
                parameter.copy_(torch.from_numpy(draws.uniform(low, high, parameter.shape)))
    return sae


def target_of(sae, *lead, seed=5):
    return normal(*lead, sae.cfg.d_out, seed=seed) if takes_target(sae) else None


def takes_target(sae):
    return sae.cfg.use_error_term and hasattr(sae.cfg, "d_out")
