"""Make `models/tiny`, an artifact of a few kilobytes for fast tests: `python models/make_tiny.py`.

Random weights from a seed; a `hook_z` SAE, so that it takes `(..., 6)` and `(..., 2, 3)`, with the error term.
"""

from pathlib import Path

import numpy as np
import torch

from saeexport import HookedSAE, HookedSAEConfig, export

ARTIFACT = Path(__file__).parent / "tiny"


def main() -> None:
    """Export it."""
    sae = HookedSAE(
        HookedSAEConfig(d_sae=16, d_in=6, hook_name="blocks.0.attn.hook_z", use_error_term=True, seed=0, device="cpu")
    )
    draws = np.random.default_rng(0)
    with torch.no_grad():
        sae.b_enc.copy_(torch.from_numpy(draws.normal(-0.5, 0.5, 16)))
        sae.b_dec.copy_(torch.from_numpy(draws.normal(0.0, 0.5, 6)))
    x = draws.standard_normal((16, 6)).astype(np.float32)
    print(export(sae, ARTIFACT, activations=x, overwrite=ARTIFACT.exists()).path)


if __name__ == "__main__":
    main()
