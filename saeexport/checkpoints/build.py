"""Builds a HookedSAE from a config and a state dict, without drawing initial weights."""

import dataclasses
from typing import Any

import torch

from runtime.errors import CheckpointError

from ..original.architectures import ARCHITECTURES
from ..original.hooked_sae import HookedSAE
from .advice import advise_on_architecture, advise_on_keys, advise_on_shapes


def build(architecture: str, config: dict[str, Any], tensors: dict[str, torch.Tensor], source: str) -> HookedSAE:
    """Return the SAE with `tensors` as its parameters, on `cfg.device`; on the CPU they are not copied.

    Args:
        architecture: Name of the architecture, a key of `ARCHITECTURES`.
        config: Values for the architecture's `Config`.
        tensors: Tensors by the names of the architecture's parameters. They need not be contiguous.
        source: Path of the checkpoint, for error messages.

    Raises:
        CheckpointError: The architecture or a key of the config is unknown, or a tensor is missing, unexpected, or of
            another shape than the config implies.
    """
    if architecture not in ARCHITECTURES:
        advice = advise_on_architecture(architecture)
        raise CheckpointError(
            f"{source} is a {architecture!r} SAE; known architectures: {', '.join(ARCHITECTURES)}. {advice}".rstrip()
        )
    kind = ARCHITECTURES[architecture]
    try:
        cfg = kind.Config.from_dict(config)
    except ValueError as error:
        advice = advise_on_keys(config, architecture)
        raise CheckpointError(f"The config of {source} does not fit: {error} {advice}".rstrip()) from None
    expected = kind.parameter_shapes(cfg)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        raise CheckpointError(
            f"{source} holds {_shapes(found)}; the {architecture} SAE of its config has {_shapes(expected)}. "
            + advise_on_shapes(found, expected, cfg.d_in, cfg.d_sae)
        )
    sae = kind(dataclasses.replace(cfg, device="meta"))
    sae.load_state_dict(tensors, assign=True)
    sae.cfg = cfg
    return sae.to(cfg.device)


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items()))
