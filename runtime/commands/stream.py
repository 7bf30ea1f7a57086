"""Run the SAE on an array of any size, from file to file, in bounded memory."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.dtypes import BFLOAT16
from ..arrays.tensor import Array, feed_of
from ..artifact.names import FEATURE_HOOKS, HOOK_INPUT, HOOK_NAMES
from ..artifact.tensorfile import TensorWriter
from ..artifact.writing import replaced_file
from ..errors import InputError
from ..session.batch import Batch, as_dtype, flat_shape
from ..session.session import SAESession

BLOCK_BYTES = 256 << 20
"""Bytes of output in memory at a time, unless the caller gives a number of tokens."""


def stream(
    session: SAESession,
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    hooks: Sequence[str] | None = None,
    batch: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> None:
    """Write hooks of the activations in `source` to `target`, a safetensors file with one tensor per hook.

    Args:
        session: The SAE.
        source: A `.npy` file, `(..., d_in)` or `(..., n_heads, d_head)`, of the SAE's dtype. For a bfloat16 SAE the
            file holds float32, because NumPy has no bfloat16. It is mapped into memory, not loaded.
        target: The file to write. It appears only when it is complete.
        hooks: Names of the hooks to write; None writes those that fire in the original.
        batch: Number of tokens to run at a time; None makes about 256 MiB of output at a time.
        overwrite: Whether to replace a target that exists.
        progress: Function that is called after each block with the number of tokens done and the total.

    Raises:
        InputError: `source` is not such an array, a name is not a hook, `batch` is not positive, or `target` must not
            be written.
        OSError: The target cannot be written.
    """
    cfg = session.cfg
    names = [name for name in HOOK_NAMES if name in (cfg.fired_hooks if hooks is None else hooks)]
    if unknown := [name for name in hooks or () if name not in HOOK_NAMES]:
        raise InputError(f"{', '.join(unknown)}: no such hook. There are {', '.join(HOOK_NAMES)}.")
    if batch is not None and batch < 1:
        raise InputError(f"batch is {batch}; it must be at least 1.")
    x = _map_array(Path(source))
    lead = flat_shape(x.shape, cfg.d_in, cfg.hook_name, str(source))[:-1]
    given = _as_input(x[:0] if x.ndim > 1 else x, cfg.dtype, str(source))  # raises before anything is written
    token_shape = x.shape[len(lead) :]
    rows = x.reshape(-1, *token_shape) if x.size else x.reshape(0, *token_shape)
    shape = Batch(cfg, x, lead, None).shape
    tensors = {name: (shape(name), given.dtype if name == HOOK_INPUT else cfg.dtype) for name in names}
    batch = batch or max(1, BLOCK_BYTES // (4 * (len(FEATURE_HOOKS) * cfg.d_sae + 4 * cfg.d_in)))
    with replaced_file(Path(target), overwrite) as file:
        writer = TensorWriter(file, tensors)
        for start in range(0, len(rows), batch):
            block = _as_input(rows[start : start + batch], cfg.dtype, str(source))
            for name, tensor in session.compute(block, names).items():
                writer.write(name, start, np.asarray(tensor))
            progress(min(start + batch, len(rows)), len(rows))


def _as_input(x: Array, dtype: str, source: str) -> Array:
    """Return rows of the file as an input of the SAE; float32 is rounded to bfloat16, which a .npy file cannot hold."""
    if dtype == BFLOAT16 and x.dtype == np.float32:
        return feed_of(x, dtype)
    as_dtype(x, dtype, source)
    return x


def _map_array(path: Path) -> Any:
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is not a .npy file of numbers: {error}") from error
    if not isinstance(x, np.ndarray):
        raise InputError(f"{path} holds several arrays. Save the one that you want with numpy.save.")
    if not x.flags.c_contiguous:
        raise InputError(f"{path} is in Fortran order. Save numpy.ascontiguousarray(x) instead.")
    return x
