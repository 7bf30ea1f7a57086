"""Run the SAE on an array of any size, from file to file, in bounded memory."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays.arguments import as_integer
from ..arrays.tensor import Array
from ..artifact.names import FEATURE_HOOKS, HOOK_INPUT, HOOK_NAMES, TARGET
from ..artifact.tensorfile import TensorWriter
from ..artifact.writing import replaced_file
from ..errors import InputError
from ..session.batch import Batch, check_target, flat_shape
from ..session.session import SAESession
from .sources import as_input, as_rows, check_other_file, map_array

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
    targets: str | os.PathLike[str] | None = None,
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
        targets: A `.npy` file of the activations that a transcoder with the error term predicts, `(..., d_out)`, one
            for each of `source`. Only hooks after the encoder need it.

    Raises:
        InputError: `source` or `targets` is not such an array, or is missing, a name is not a hook, `batch` is not
            positive, or `target` must not be written.
        OSError: The target cannot be written.
    """
    cfg = session.cfg
    names = [name for name in HOOK_NAMES if name in (cfg.fired_hooks if hooks is None else hooks)]
    if unknown := [name for name in hooks or () if name not in HOOK_NAMES]:
        raise InputError(f"{', '.join(unknown)}: no such hook. There are {', '.join(HOOK_NAMES)}.")
    if batch is not None:
        batch = as_integer("batch", batch, 1)
    for read in (source, *([] if targets is None else [targets])):
        check_other_file(read, Path(target))
    x = map_array(source)
    lead = flat_shape(x.shape, cfg.d_in, cfg.hook_name, str(source))[:-1]
    given = as_input(x[:0] if x.ndim > 1 else x, cfg.dtype, str(source))  # raises before anything is written
    rows = as_rows(x, x.shape[len(lead) :])
    target_rows = _target_rows(session, targets, lead, names)
    shape = Batch(cfg, x, lead, None).shape
    tensors = {name: (shape(name), given.dtype if name == HOOK_INPUT else cfg.dtype) for name in names}
    batch = batch or max(1, BLOCK_BYTES // (4 * (len(FEATURE_HOOKS) * cfg.d_sae + 4 * cfg.d_in)))
    with replaced_file(Path(target), overwrite) as file:
        writer = TensorWriter(file, tensors)
        for start in range(0, len(rows), batch):
            block = as_input(rows[start : start + batch], cfg.dtype, str(source))
            given_targets = None if target_rows is None else as_input(
                target_rows[start : start + batch], cfg.dtype, str(targets)
            )  # fmt: skip
            for name, tensor in session.compute(block, names, given_targets).items():
                writer.write(name, start, np.asarray(tensor))
            progress(min(start + batch, len(rows)), len(rows))


def _target_rows(
    session: SAESession, targets: str | os.PathLike[str] | None, lead: tuple[int, ...], names: Sequence[str]
) -> Array | None:
    """Return the targets, `(tokens, d_out)`, or None if none are given and the hooks do not need them.

    Raises:
        InputError: They are missing or do not fit.
    """
    cfg = session.cfg
    if targets is None:
        graph = session.explain(names).graph
        if graph is not None and TARGET in {tensor.name for tensor in session.artifact.manifest.graphs[graph].inputs}:
            raise InputError(
                "The error of this transcoder is taken against the activations that it predicts, of shape "
                f"{(*lead, cfg.d_out)}. Give their file (--targets FILE), or choose hooks of the encoder (--hooks "
                f"{' '.join(FEATURE_HOOKS)})."
            )
        return None
    given = map_array(targets)
    check_target(given, cfg, lead, str(targets))
    as_input(given[:0] if given.ndim > 1 else given, cfg.dtype, str(targets))
    return as_rows(given, given.shape[len(lead) :])
