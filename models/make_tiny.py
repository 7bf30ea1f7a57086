"""Exports `models/tiny`, an artifact of a few kilobytes for fast tests: `python models/make_tiny.py`.

The SAE has seeded random weights and the error term. It belongs to a `hook_z`, so that it accepts `(..., 6)` and
`(..., 2, 3)`.
"""

from pathlib import Path

import numpy as np
import torch

from saeexport import HookedSAE, HookedSAEConfig, export

ARTIFACT = Path(__file__).parent / "tiny"


def main() -> None:
    """Draw the weights and export the SAE."""
    sae = HookedSAE(
        HookedSAEConfig(d_sae=16, d_in=6, hook_name="blocks.0.attn.hook_z", use_error_term=True, seed=0, device="cpu")
    )
    draws = np.random.default_rng(0)
    with torch.no_grad():
        sae.b_enc.copy_(torch.from_numpy(draws.normal(-0.5, 0.5, 16)))
        sae.b_dec.copy_(torch.from_numpy(draws.normal(0.0, 0.5, 6)))
    x = draws.standard_normal((16, 6)).astype(np.float32)
    artifact = export(sae, ARTIFACT, activations=x, overwrite=ARTIFACT.exists())
    print(f"The SAE was exported to {artifact.path}.")


if __name__ == "__main__":
    main()
