"""The activations on which parity is proved: a user's, sampled, or random ones."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from runtime.errors import ExportError, InputError
from runtime.inputs import Array, as_dtype, flat_shape
from runtime.manifest import SAEConfig

MAX_TOKENS = 1024
MAX_NUMBERS = 1 << 24  # of one tensor of the features, in float64 128 MiB: 1024 tokens up to d_sae 16384, 128 at 131072
MIN_TOKENS = 16


def prepare_activations(sae: Any, config: SAEConfig, activations: Any) -> Array:
    """Return at most 1024 tokens of the given activations, evenly spaced; or, of None, as many random ones.

    Returns:
        `(tokens, d_in)` or `(tokens, n_heads, d_head)`, in the SAE's dtype.

    Raises:
        ExportError: there is no token, or one that is not finite.
        InputError: their shape or dtype does not fit.
    """
    limit = max(MIN_TOKENS, min(MAX_TOKENS, MAX_NUMBERS // config.d_sae))
    if activations is None:
        return _synthetic(sae, config, limit)
    if isinstance(activations, torch.Tensor):
        activations = activations.detach().cpu()
        if activations.dtype == torch.bfloat16:  # which numpy has not; float32 holds its numbers
            activations = activations.float()
        activations = activations.numpy()
    shape = flat_shape(np.shape(activations), config.d_in, config.hook_name, "activations")
    rows = np.asarray(activations).reshape(-1, *config.input_shape)
    if shape[:-1] and not len(rows):
        raise ExportError(f"activations is {np.shape(activations)}: it holds no token.")
    sample = rows[np.linspace(0, len(rows) - 1, min(limit, len(rows)), dtype=np.int64)]
    sample = np.ascontiguousarray(as_dtype(sample, np.dtype(config.dtype), "activations"))
    if not np.isfinite(sample).all():
        raise ExportError("activations holds numbers that are not finite; parity cannot be judged on them.")
    return sample


def _synthetic(sae: Any, config: SAEConfig, tokens: int) -> Array:
    """Draw from a standard normal distribution around `b_dec`, where an SAE expects its inputs."""
    draws = np.random.default_rng(0).standard_normal((tokens, config.d_in))
    center = getattr(sae, "b_dec", torch.zeros(())).detach().cpu().double().numpy()
    return (draws + center).astype(config.dtype).reshape(tokens, *config.input_shape)


def read_activations(path: str) -> Array:
    """Return the one array of a `.npy`, `.npz` or `.safetensors` file.

    Raises:
        InputError: the file has another ending, is not sound, or holds several arrays.
        OSError: it cannot be read.
    """
    ending = Path(path).suffix
    try:
        if ending == ".npy":
            array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
            return array
        if ending == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return _only({name: file[name] for name in file.files}, path)
        if ending == ".safetensors":
            return _only(load_file(path), path)
    except InputError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as an array of numbers: {error}") from error
    raise InputError(f"{path} ends in {ending!r}; activations are read from .npy, .npz and .safetensors.")


def _only(arrays: dict[str, Array], path: str) -> Array:
    if len(arrays) != 1:
        raise InputError(f"{path} holds {len(arrays)} arrays ({', '.join(sorted(arrays))}); it must hold one.")
    return next(iter(arrays.values()))
