"""From a config and a state dict to a HookedSAE, without drawing weights that would be thrown away."""

import dataclasses

import torch

from runtime.errors import CheckpointError

from ..hooked_sae import HookedSAE, HookedSAEConfig


def build(cfg: HookedSAEConfig, tensors: dict[str, torch.Tensor], source: str) -> HookedSAE:
    """Return the HookedSAE of `cfg` with `tensors` as its parameters, on `cfg.device`.

    Raises:
        CheckpointError: a tensor is missing, extra, or of another shape than the config says.
    """
    sae = HookedSAE(dataclasses.replace(cfg, device="meta"))
    expected = {name: tuple(tensor.shape) for name, tensor in sae.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise CheckpointError(f"{source} holds {_shapes(found)}; a HookedSAE of its config has {_shapes(expected)}.")
    sae.load_state_dict(tensors, assign=True)
    sae.cfg = cfg
    return sae.to(cfg.device)


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
