"""`golden.safetensors`: inputs with what PyTorch computed from them and the truth, to be proved again anywhere.

It holds the six hooks by their names, as PyTorch computed them, `(tokens, ...)`, and for each of the five computed ones
`residual.<hook>`, float32: the truth in float64 less what PyTorch computed. The residual is small, so that float32
keeps the truth to about 14 digits in half the space.
"""

import numpy as np
from safetensors.numpy import load_file, save_file

from .artifact import Artifact
from .errors import IntegrityError
from .inputs import Array
from .manifest import HOOK_NAMES
from .parity import COMPUTED_HOOKS, Reference

RESIDUAL = "residual."


def save_golden(reference: Reference, tokens: int, path: str) -> None:
    """Write `tokens` of a reference, evenly spaced, to `path`."""
    sample = np.linspace(0, reference.tokens - 1, tokens, dtype=np.int64)
    original = {hook: reference.original[hook][sample] for hook in HOOK_NAMES}
    tensors: dict[str, Array] = dict(original)
    for hook in COMPUTED_HOOKS:
        residual = reference.truth[hook][sample] - original[hook].astype(np.float64)
        tensors[RESIDUAL + hook] = residual.astype(np.float32)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def load_golden(artifact: Artifact) -> Reference:
    """Return the golden batch of an artifact.

    Raises:
        IntegrityError: the file is not what the manifest says, or lacks a tensor.
    """
    path = artifact.file(artifact.manifest.golden.file)
    tensors = load_file(path)
    missing = {*HOOK_NAMES, *(RESIDUAL + hook for hook in COMPUTED_HOOKS)} - set(tensors)
    if missing:
        raise IntegrityError(f"{path} has no tensor {', '.join(sorted(missing))}. Export the SAE again.")
    original = {hook: tensors[hook] for hook in HOOK_NAMES}
    truth = {hook: original[hook].astype(np.float64) + tensors[RESIDUAL + hook] for hook in COMPUTED_HOOKS}
    return Reference(original, truth, artifact.manifest.sae.use_error_term)
