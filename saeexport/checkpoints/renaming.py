"""Tensors of other libraries under HookedSAE's names: none overlooked, and the matrices the way round that it has."""

from collections.abc import Iterable

import torch

from runtime.errors import CheckpointError


def rename(
    tensors: dict[str, torch.Tensor], names: dict[str, str], source: str, unused: Iterable[str] = ()
) -> dict[str, torch.Tensor]:
    """Return the tensors, views of those given, under the names of HookedSAE's parameters.

    What ends in `.weight`, as the matrix of a `torch.nn.Linear` `[out, in]`, is transposed.

    Args:
        tensors: by the checkpoint's names.
        names: HookedSAE's by the checkpoint's.
        source: what they were read from, for the messages.
        unused: the tensors that may be there beside those, and are left out.

    Raises:
        CheckpointError: one is missing, or there is one that is neither in `names` nor in `unused`.
    """
    missing, extra = sorted(set(names) - set(tensors)), sorted(set(tensors) - set(names) - set(unused))
    if missing or extra:
        raise CheckpointError(
            f"{source} misses {missing} and has {extra}, which are not understood; it must hold {sorted(names)}."
        )
    return {
        name: tensors[stored].T if stored.endswith(".weight") and tensors[stored].ndim == 2 else tensors[stored]
        for stored, name in names.items()
    }
