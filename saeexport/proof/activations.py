"""Prepares the activations on which parity is proved: a sample of those given, or random ones."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from runtime.arrays.dtypes import FLOAT32, rounded
from runtime.arrays.npyfile import UNREADABLE, map_npy
from runtime.arrays.tensor import Array, as_given, check_holds_its_values
from runtime.artifact.budgets import MIN_COLUMN_TOKENS
from runtime.artifact.manifest import SAEConfig
from runtime.artifact.names import HOOK_ACTS_POST
from runtime.errors import ExportError, InputError
from runtime.parity.reference import Reference
from runtime.session.batch import as_dtype, check_target, flat_shape

MAX_TOKENS = 1024
MAX_ELEMENTS = 1 << 22
"""Bound on the elements of a feature tensor, 32 MiB in float64: 1024 tokens up to d_sae = 4096, 64 at 65536."""

MIN_DISTINCT = 4
"""Smallest number of different tokens that can prove parity. The intervention on which `steer.onnx` is proved makes
four kinds of edits, one for each token in turn (`truth.typical_intervention`)."""


def prepare_activations(
    sae: Any, config: SAEConfig, activations: Any, targets: Any = None
) -> tuple[Array, Array | None]:
    """Return at most 1024 evenly spaced tokens of the given activations, or as many random tokens if None are given.

    The activations are rounded to the dtype of the SAE.

    Returns:
        The batch, `(tokens, d_in)` or `(tokens, n_heads, d_head)`, in the SAE's dtype, or in float32 for bfloat16; and
        for a transcoder with the error term the targets of the same tokens, `(tokens, d_out)`, otherwise None.

    Raises:
        ExportError: There are too few different tokens, a value is not finite, or targets are missing or not needed.
        InputError: A shape or dtype does not fit.
    """
    limit = max(MIN_COLUMN_TOKENS, min(MAX_TOKENS, MAX_ELEMENTS // config.d_sae))
    given = activations is not None
    if (targets is not None) != (given and config.takes_target):
        takes = "one for each of the activations" if config.takes_target else "none: only transcoders with it do"
        raise ExportError(f"targets, which the error term is taken against: {'none' if targets is None else 'some'} "
                          f"given; this SAE takes {takes}.")  # fmt: skip
    if not given:
        return _synthetic(sae, config, limit)
    activations = _as_numpy(activations)
    shape = flat_shape(activations.shape, config.d_in, config.hook_name, "activations")
    rows = activations.reshape(-1, *config.input_shape)
    if shape[:-1] and not len(rows):
        raise ExportError(f"activations has shape {activations.shape}, without a token. Pass at least one.")
    sample = np.linspace(0, len(rows) - 1, min(limit, len(rows)), dtype=np.int64)
    batch = _to_finite(rows[sample], config, "activations")
    _check_distinct(batch)
    if targets is None:
        return batch, None
    targets = _as_numpy(targets)
    check_target(targets, config, shape[:-1], "targets")
    target_rows = targets.reshape(-1, *config.output_shape)[sample]
    return batch, _to_finite(target_rows, config, "targets")


def _check_distinct(batch: Array) -> None:
    """Refuse activations that repeat a few tokens, such as an array of zeros.

    Raises:
        ExportError: There are fewer than `MIN_DISTINCT` different tokens.
    """
    distinct = len({row.tobytes() for row in batch + 0})  # -0 becomes 0
    if distinct < MIN_DISTINCT:
        raise ExportError(
            f"activations has {distinct} different token{'s' * (distinct > 1)} in {len(batch)}; parity needs at least "
            f"{MIN_DISTINCT}. Pass activations of the model on real text, or none for random inputs."
        )


def check_features(reference: Reference, given: bool) -> None:
    """Refuse a batch on which no feature is on, because every decoder gives the same there, or with too few tokens.

    Args:
        reference: Reference on the batch, without the tokens that prove little.
        given: Whether the caller passed the activations.

    Raises:
        ExportError: No feature is on for any token, or too many tokens were left out.
    """
    if reference.tokens < MIN_DISTINCT <= reference.tokens + reference.left_out:
        raise ExportError(
            f"Of {reference.tokens + reference.left_out} tokens {reference.left_out} cancel so much that they prove "
            f"little; parity needs at least {MIN_DISTINCT} others. Pass more activations."
        )
    if (reference.original[HOOK_ACTS_POST] != 0).any():
        return
    raise ExportError(
        f"No feature is on for any of the {reference.tokens} {'given' if given else 'random'} tokens, so that they do "
        "not prove that the decoder is right. Pass activations of the hook that the SAE was trained on, in the scale "
        "that the model has them in: activations=..., --activations FILE."
    )


def _as_numpy(array: Any) -> Array:
    check_holds_its_values(array)
    if isinstance(array, torch.Tensor):
        if array.is_meta:
            raise InputError("A tensor on the device meta was given, which has no values.")
        array = array.detach().cpu()
        if array.dtype == torch.bfloat16:  # numpy lacks bfloat16; float32 holds its values exactly
            array = array.float()
    return np.asarray(as_given(array))


def _to_finite(rows: Array, config: SAEConfig, name: str) -> Array:
    """Return rows rounded to the dtype of the SAE; `name` names them in errors."""
    with np.errstate(over="ignore"):  # values beyond the range of float16 become infinite
        if config.dtype != FLOAT32 and rows.dtype == np.float64:  # it is rounded further below
            rows = rows.astype(np.float32)
        sample = np.ascontiguousarray(rounded(np.asarray(as_dtype(rows, FLOAT32, name)), config.dtype))
    if not np.isfinite(sample).all():
        raise ExportError(f"{name} has values that are not finite in {config.dtype}; parity cannot be judged on them.")
    return sample


def _synthetic(sae: Any, config: SAEConfig, tokens: int) -> tuple[Array, Array | None]:
    """Return random tokens from a standard normal distribution around `b_dec`, where an SAE expects its inputs."""
    draws = np.random.default_rng(0)
    b_dec = getattr(sae, "b_dec", torch.zeros(())).detach().cpu().double().numpy()
    center = b_dec if config.d_out is None else np.zeros(())
    x = draws.standard_normal((tokens, config.d_in)) + center
    target = draws.standard_normal((tokens, *config.output_shape)) + b_dec if config.takes_target else None
    batch = rounded(x, config.dtype).reshape(tokens, *config.input_shape)
    return batch, None if target is None else rounded(target, config.dtype)


ENDINGS = (".npy", ".npz", ".safetensors")
"""Endings of the files that `read_activations` reads."""

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)
"""What the zip library raises for a damaged archive, an encrypted one, and one with another compression."""


def read_activations(path: str) -> Array:
    """Return the only array of a `.npy`, `.npz` or `.safetensors` file.

    Raises:
        InputError: The file has another extension, is damaged, or does not hold exactly one array; a `.npy` is missing.
        OSError: The file cannot be read.
    """
    ending = Path(path).suffix
    try:
        if ending == ".npy":
            array: Array = map_npy(path)
            return array
        if ending == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return _only({name: file[name] for name in file.files}, path)
        if ending == ".safetensors":
            return _only(load_file(path), path)
    except InputError:
        raise
    except (*UNREADABLE, *ZIP_ERRORS, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as an array: {error}") from error
    raise InputError(f"{path} ends in {ending!r}; activations are read from .npy, .npz and .safetensors.")


def _only(arrays: dict[str, Array], path: str) -> Array:
    if len(arrays) != 1:
        raise InputError(f"{path} holds {len(arrays)} arrays ({', '.join(sorted(arrays))}); it must hold one.")
    return next(iter(arrays.values()))
