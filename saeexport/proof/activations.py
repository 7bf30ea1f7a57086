"""The activations on which parity is proved: a user's, sampled, or random ones."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from runtime.arrays.dtypes import FLOAT32, rounded
from runtime.arrays.tensor import Array
from runtime.artifact.manifest import SAEConfig
from runtime.errors import ExportError, InputError
from runtime.session.batch import as_dtype, check_target, flat_shape

MAX_TOKENS = 1024
MAX_NUMBERS = 1 << 22  # of one tensor of the features, in float64 32 MiB: 1024 tokens up to d_sae 4096, 64 at 65536
MIN_TOKENS = 16


def prepare_activations(
    sae: Any, config: SAEConfig, activations: Any, targets: Any = None
) -> tuple[Array, Array | None]:
    """Return at most 1024 tokens of the given activations, evenly spaced; or, of None, as many random ones.

    For an SAE in half precision they are rounded to it.

    Returns:
        `(tokens, d_in)` or `(tokens, n_heads, d_head)`, numbers of the SAE's dtype, those of bfloat16 in float32; and
        for a transcoder with the error term the targets of these tokens, `(tokens, d_out)`.

    Raises:
        ExportError: there is no token, or one that is not finite, or targets are missing, or there are too many.
        InputError: their shape or dtype does not fit.
    """
    limit = max(MIN_TOKENS, min(MAX_TOKENS, MAX_NUMBERS // config.d_sae))
    given = activations is not None
    if (targets is not None) != (given and config.takes_target):
        takes = "one for each of the activations" if config.takes_target else "none: that is for transcoders with it"
        raise ExportError(f"targets, which the error term is taken against: {'none' if targets is None else 'some'} "
                          f"given; this SAE takes {takes}.")  # fmt: skip
    if not given:
        return _synthetic(sae, config, limit)
    activations = _as_numpy(activations)
    shape = flat_shape(np.shape(activations), config.d_in, config.hook_name, "activations")
    rows = np.asarray(activations).reshape(-1, *config.input_shape)
    if shape[:-1] and not len(rows):
        raise ExportError(f"activations is {np.shape(activations)}: it holds no token.")
    sample = np.linspace(0, len(rows) - 1, min(limit, len(rows)), dtype=np.int64)
    if targets is None:
        return _finite(rows[sample], config, "activations"), None
    targets = np.asarray(_as_numpy(targets))
    check_target(targets, config, shape[:-1], "targets")
    target_rows = targets.reshape(-1, *config.output_shape)[sample]
    return _finite(rows[sample], config, "activations"), _finite(target_rows, config, "targets")


def _as_numpy(array: Any) -> Any:
    if not isinstance(array, torch.Tensor):
        return array
    array = array.detach().cpu()
    if array.dtype == torch.bfloat16:  # which numpy has not; float32 holds its numbers
        array = array.float()
    return array.numpy()


def _finite(rows: Array, config: SAEConfig, what: str) -> Array:
    with np.errstate(over="ignore"):  # what is too large for float16 is not finite then
        if config.dtype != FLOAT32 and rows.dtype == np.float64:  # rounded it is anyway
            rows = rows.astype(np.float32)
        sample = np.ascontiguousarray(rounded(np.asarray(as_dtype(rows, FLOAT32, what)), config.dtype))
    if not np.isfinite(sample).all():
        raise ExportError(
            f"{what} holds numbers that are not finite in {config.dtype}; parity cannot be judged on them."
        )
    return sample


def _synthetic(sae: Any, config: SAEConfig, tokens: int) -> tuple[Array, Array | None]:
    """Draw from a standard normal distribution around `b_dec`, where an SAE expects its inputs."""
    draws = np.random.default_rng(0)
    b_dec = getattr(sae, "b_dec", torch.zeros(())).detach().cpu().double().numpy()
    center = b_dec if config.d_out is None else np.zeros(())
    x = draws.standard_normal((tokens, config.d_in)) + center
    target = draws.standard_normal((tokens, *config.output_shape)) + b_dec if config.takes_target else None
    batch = rounded(x, config.dtype).reshape(tokens, *config.input_shape)
    return batch, None if target is None else rounded(target, config.dtype)


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
