"""Writes and reads `golden.safetensors`: inputs, what PyTorch computed from them, and the truth, for later proofs.

Its tensors, by name:

    hook_sae_*                     the hooks as PyTorch computed them, `(tokens, ...)`; a transcoder without the error
                                   term has no hook_sae_error
    target                         the target of a transcoder with the error term, `(tokens, d_out)`
    feature_ids, feature_scale,    an intervention, as `steer.onnx` takes it
    feature_shift
    steered.hook_sae_recons,       the hooks under that intervention
    steered.hook_sae_output
    steered.hook_sae_acts_post     likewise, but only its columns `feature_ids`, `(tokens, m)`
    residual.NAME                  for every computed tensor NAME above, the truth in float64 minus what PyTorch
                                   computed, float32
    scale.NAME                     for every computed tensor NAME above, the size of the values that each token of it
                                   was computed from, `Reference.token_scale`, `(tokens,)` float64
    uncertain.PRECISION            the uncertain features, as indices into the flattened `(tokens, d_sae)`, int64
    uncertain.PRECISION.flips      if these are features with a gate: for each token, the number of features that the
                                   original decides differently from the truth alone, `(tokens,)`, int64

A residual is small. In float32 it keeps about 14 digits of the truth (10 in half precision) in half the space of
float64. A scale lets a program in another language measure errors as `runtime.parity.reference` does; here it is
compared with the other tensors, and not used. PRECISION is the SAE's dtype and, for float32, also `tf32`.
`runtime.parity.decisions` says which features are uncertain. Tensors of bfloat16 are stored in float32, because few
readers support bfloat16.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ..arrays.dtypes import BFLOAT16, DTYPES, FLOAT32
from ..arrays.tensor import Array
from ..artifact.contracts import MODEL
from ..artifact.folder import Artifact
from ..artifact.manifest import HookBudget, HookParity, Manifest
from ..artifact.names import (
    FEATURE_IDS,
    FEATURE_SCALE,
    FEATURE_SHIFT,
    HOOK_ACTS_POST,
    HOOK_INPUT,
    HOOK_OUTPUT,
    HOOK_RECONS,
    TARGET,
)
from ..artifact.tensorfile import tensors_in
from ..devices.options import TF32
from ..errors import InputError, IntegrityError
from ..session.interventions import Intervention
from .reference import Budgets, Hooks, Reference, SteeredReference

RESIDUAL = "residual."
SCALE = "scale."
STEERED = "steered."
UNCERTAIN = "uncertain."
FLIPS = ".flips"
CHANGED_HOOKS = (HOOK_ACTS_POST, HOOK_RECONS, HOOK_OUTPUT)

SCALE_ROUNDING = 1e-6
"""Relative difference of a stored scale to that of the stored truth, whose residuals are rounded."""


def save_golden(steered: SteeredReference, tokens: int, path: str, in_tf32: Reference | None = None) -> None:
    """Write evenly spaced tokens of a reference to a file.

    Args:
        steered: The reference, with an intervention.
        tokens: Number of tokens to write.
        path: Path of the file.
        in_tf32: The reference without an intervention in TF32 arithmetic, if the artifact may run in it.
    """
    sample = np.linspace(0, steered.tokens - 1, tokens, dtype=np.int64)
    original, truth = ({hook: hooks[hook][sample] for hook in steered.truth}
                       for hooks in (steered.clean.original, steered.clean.truth))  # fmt: skip
    for hook in CHANGED_HOOKS:
        columns = (sample[:, None], steered.intervention.ids) if hook == HOOK_ACTS_POST else sample
        original[STEERED + hook] = steered.original[hook][columns]
        truth[STEERED + hook] = steered.truth[hook][columns]
    residuals = {
        RESIDUAL + name: (truth[name] - y.astype(np.float64)).astype(np.float32) for name, y in original.items()
    }
    scales = {SCALE + name: scale[sample] for name, scale in _scales(steered).items()}
    inputs = steered.original[HOOK_INPUT]
    feeds = steered.subset(sample).intervention.feeds(
        (tokens,), FLOAT32 if inputs.dtype == np.float32 else steered.dtype
    )
    tensors = {
        HOOK_INPUT: inputs[sample],
        **original,
        **residuals,
        **scales,
        **{k: np.asarray(v) for k, v in feeds.items()},
    }
    for precision, reference in ((steered.dtype, steered.clean), (TF32, in_tf32)):
        if reference is not None:
            tensors[UNCERTAIN + precision] = np.flatnonzero(reference.is_uncertain[sample])
            if reference.flips is not None:
                tensors[UNCERTAIN + precision + FLIPS] = reference.flips[sample].astype(np.int64)
    if steered.target is not None:
        tensors[TARGET] = steered.target[sample]
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def load_golden(artifact: Artifact, precision: str = FLOAT32) -> SteeredReference:
    """Return the golden batch of an artifact as a reference, with the budgets that were recorded at export.

    Args:
        artifact: The artifact.
        precision: "tf32" takes the budgets and uncertain features for a GPU that computes float32 products in TF32;
            any other value takes those of the SAE's dtype.

    Raises:
        IntegrityError: The file differs from the manifest's record, lacks a tensor, or has one that is not valid.
    """
    with artifact.open(artifact.manifest.golden.file) as file:
        path, content = file.path, np.frombuffer(file.read(check=True), np.uint8)
    tensors = {name: tensor.copy() for name, tensor in tensors_in(content, path).items()}  # aligned, and writable
    sae, rounded = artifact.manifest.sae, artifact.manifest.parity is None
    budgets, steered_budgets = _budgets(artifact, precision)
    computed = [*sae.hooks[1:], *(STEERED + hook for hook in CHANGED_HOOKS)]
    uncertain = UNCERTAIN + (TF32 if precision == TF32 else sae.dtype)
    _check_tensors(tensors, artifact.manifest, uncertain, path)
    target = tensors[TARGET] if sae.takes_target else None
    truth = {name: tensors[name].astype(np.float64) + tensors[RESIDUAL + name] for name in computed}
    is_uncertain, places = np.zeros(truth[HOOK_ACTS_POST].shape, bool), tensors[uncertain]
    if ((places < 0) | (places >= is_uncertain.size)).any():
        raise IntegrityError(
            f"{path}: {uncertain} are not indices into {list(is_uncertain.shape)} activations. Export the SAE again."
        )
    is_uncertain.reshape(-1)[places] = True
    clean = Reference(
        {hook: tensors[hook] for hook in sae.hooks},
        {hook: truth[hook] for hook in sae.hooks[1:]},
        sae.use_error_term,
        target,
        sae.dtype,
        budgets,
        rounded=rounded,
        uncertain=None if rounded else is_uncertain,
        flips=None if rounded else tensors.get(uncertain + FLIPS),
    )
    try:
        intervention = Intervention(*(tensors[name] for name in (FEATURE_IDS, FEATURE_SCALE, FEATURE_SHIFT)))
        intervention.check(sae.d_sae, sae.dtype)
    except InputError as error:
        raise IntegrityError(f"{path} has an intervention that cannot be made: {error} Export the SAE again.") from None
    steered = SteeredReference(
        {**clean.original, **_changed_hooks(tensors, clean.original, intervention)},
        {**clean.truth, **_changed_hooks(truth, clean.truth, intervention)},
        sae.use_error_term,
        target,
        sae.dtype,
        steered_budgets,
        rounded=rounded,
        clean=clean,
        intervention=intervention,
    )
    for name, scale in _scales(steered).items():
        if not np.allclose(tensors[SCALE + name], scale, rtol=SCALE_ROUNDING, atol=0):
            raise IntegrityError(
                f"{path}: {SCALE}{name} is not what the other tensors imply, so that programs in other languages would "
                "judge with other tolerances. Export the SAE again."
            )
    return steered


def _scales(steered: SteeredReference) -> dict[str, Array]:
    """Return the scale of each token, `(tokens,)`, by the name of the tensor that it is for."""
    clean = {hook: steered.clean.token_scale(hook) for hook in steered.clean.truth}
    return clean | {STEERED + hook: steered.token_scale(hook) for hook in CHANGED_HOOKS}


def _check_tensors(tensors: Hooks, manifest: Manifest, uncertain: str, path: Path) -> None:
    """Check that every tensor that is read is there, with the dtype and the shape that the manifest implies.

    Raises:
        IntegrityError: One is missing or different.
    """
    sae, tokens = manifest.sae, manifest.golden.tokens
    floats, whole = np.dtype(np.float32), np.dtype(np.int64)
    stored = floats if sae.dtype == BFLOAT16 else DTYPES[sae.dtype].numpy

    def rows(name: str) -> int:
        """Return a size that the manifest does not tell: that of the first dimension, if there is one."""
        return next(iter(tensors[name].shape), 1) if name in tensors else 1

    m, places = rows(FEATURE_IDS), rows(uncertain)
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        tensor.name: (stored, (tokens, *map(int, tensor.shape[1:]))) for tensor in manifest.graphs[MODEL].outputs
    }
    expected |= {STEERED + hook: expected[hook] for hook in CHANGED_HOOKS}
    expected[STEERED + HOOK_ACTS_POST] = stored, (tokens, m)
    expected |= {RESIDUAL + name: (floats, shape) for name, (_, shape) in expected.items() if name != HOOK_INPUT}
    expected |= {
        SCALE + name.removeprefix(RESIDUAL): (np.dtype(np.float64), (tokens,))
        for name in expected
        if name.startswith(RESIDUAL)
    }
    expected |= {FEATURE_IDS: (whole, (m,)), uncertain: (whole, (places,))}
    for name in (FEATURE_SCALE, FEATURE_SHIFT):
        expected[name] = stored, (1 if rows(name) == 1 else tokens, m)
    if sae.takes_target:
        expected[TARGET] = stored, (tokens, *sae.output_shape)
    if uncertain + FLIPS in tensors:
        expected[uncertain + FLIPS] = whole, (tokens,)
    if missing := expected.keys() - tensors:
        raise IntegrityError(f"{path} has no tensor {', '.join(sorted(missing))}. Export the SAE again.")
    for name, (dtype, shape) in expected.items():
        found = tensors[name]
        if found.dtype != dtype or found.shape != shape:
            raise IntegrityError(
                f"{path}: {name} is {found.dtype} {list(found.shape)}, expected {dtype} {list(shape)}. Export the SAE "
                "again."
            )


def _changed_hooks(tensors: Hooks, clean: Hooks, intervention: Intervention) -> dict[str, Array]:
    """Return the hooks that the intervention changed, with the stored columns of acts_post put into the clean one."""
    changed = {hook: tensors[STEERED + hook] for hook in CHANGED_HOOKS}
    acts_post = clean[HOOK_ACTS_POST].copy()
    acts_post[:, intervention.ids] = changed[HOOK_ACTS_POST]
    return {**changed, HOOK_ACTS_POST: acts_post}


def _budgets(artifact: Artifact, precision: str) -> tuple[Budgets, Budgets]:
    """Return the recorded budgets, without and with an intervention."""
    record, parity = artifact.manifest.record, artifact.manifest.parity
    if precision == TF32 and parity is not None:
        return _budgets_in(parity.tf32), _budgets_in(parity.tf32_steered)
    return _budgets_in(record.hooks), _budgets_in(record.steered)


def _budgets_in(recorded: Mapping[str, HookParity | HookBudget]) -> Budgets:
    return {hook: record.budget for hook, record in recorded.items()}
