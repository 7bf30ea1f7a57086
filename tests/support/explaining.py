"""SAEs that explain any activation, so that they fit every tensor of a model with random weights."""

import torch

from saeexport import HookedSAE, HookedSAEConfig


def explaining_sae(
    d_in: int, hook_name: str, explained: float = 0.9, center=None, seed: int = 0, **config
) -> HookedSAE:
    """Return an SAE that reconstructs a multiple of `x - center`, with a feature for each direction and its opposite.

    Args:
        d_in: Width of the activations.
        hook_name: TransformerLens name.
        explained: Fraction of the variance around `center` that it explains, for any x. With 1, it explains any tensor.
        center: The typical activation, `(d_in,)`; None for 0.
        seed: Seed of its directions.
        config: Further options of its config.
    """
    sae = HookedSAE(HookedSAEConfig(d_sae=2 * d_in, d_in=d_in, hook_name=hook_name, **config))
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator, dtype=torch.float64))[0]
    both = torch.cat([directions, -directions], dim=1)
    with torch.no_grad():
        sae.W_enc.copy_(both)
        if center is not None:
            sae.b_dec.copy_(torch.as_tensor(center))
        sae.W_dec.copy_(both.T * (1 - (1 - explained) ** 0.5))
    return sae.eval()
