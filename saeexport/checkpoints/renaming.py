"""Renames the tensors of other libraries to HookedSAE's parameters, and transposes matrices where needed."""

from collections.abc import Iterable
from pathlib import Path

import torch

from runtime.errors import CheckpointError

SAME = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
"""The parameters of a standard HookedSAE under their own names."""

LINEAR_LAYERS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
"""The same parameters as two `torch.nn.Linear` layers, `encoder` and `decoder`, have them."""


def rename(
    tensors: dict[str, torch.Tensor],
    names: dict[str, str],
    source: str,
    unused: Iterable[str] = (),
    transposed: Iterable[str] = (),
) -> dict[str, torch.Tensor]:
    """Return views of the tensors under the names of HookedSAE's parameters.

    Matrices whose name ends in `.weight` are those of a `torch.nn.Linear`, `[out, in]`, and are transposed.

    Args:
        tensors: Tensors by their names in the checkpoint.
        names: HookedSAE's name for each name in the checkpoint.
        source: Path of the checkpoint, for error messages.
        unused: Names of tensors that the checkpoint may have and that are not needed.
        transposed: Names of other matrices in the checkpoint that have the orientation of a `torch.nn.Linear`.

    Raises:
        CheckpointError: A tensor is missing, or is neither in `names` nor in `unused`.
    """
    missing, extra = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names) - set(unused))
    if missing or extra:
        raise CheckpointError(
            f"{source} lacks the tensors {missing} and has the unknown tensors {extra}; it must hold {sorted(names)}."
        )
    linear = {*transposed, *(name for name in names if name.endswith(".weight"))}
    return {
        name: tensors[stored].T if stored in linear and tensors[stored].ndim == 2 else tensors[stored]
        for stored, name in names.items()
    }


def rename_known(
    tensors: dict[str, torch.Tensor], names: dict[str, str], source: str | Path
) -> dict[str, torch.Tensor]:
    """Return the tensors under the names of HookedSAE's parameters where `names` has one, and all others as they are.

    Raises:
        CheckpointError: A parameter is there under two names.
    """
    renamed = {names.get(name, name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise CheckpointError(f"{source} holds a parameter under two names: {', '.join(sorted(tensors))}.")
    return renamed
