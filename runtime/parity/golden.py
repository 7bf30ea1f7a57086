"""`golden.safetensors`: inputs with what PyTorch computed from them and the truth, to be proved again anywhere.

It holds the six hooks by their names, as PyTorch computed them, `(tokens, ...)`; `feature_ids`, `feature_scale` and
`feature_shift`, an intervention as `steer.onnx` takes it; and what that changed: `steered.hook_sae_recons` and
`steered.hook_sae_output`, and of `steered.hook_sae_acts_post` the columns `feature_ids`, `(tokens, m)`.

A transcoder with the error term has `target` too, and one without has no `hook_sae_error`.

For every computed tensor there is `residual.<name>`, float32: the truth in float64 less what PyTorch computed. It is
small, so that float32 keeps the truth to about 14 digits (in half precision 10) in half the space.

For each precision that the SAE may run in, its dtype and for float32 `tf32`, there is which features are uncertain
(`runtime.parity.decisions` says when): `uncertain.<precision>`, places in a flat `(tokens, d_sae)`, int64, and
`uncertain.<precision>.acts_post`, what these activations are where the feature decides otherwise, float32; and where
there is a gate `uncertain.<precision>.flips`, how many the original itself decides otherwise, `(tokens,)`, int64.

Numbers in bfloat16, which few readers know, are stored in float32.
"""

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import load_file, save_file

from ..arrays.dtypes import FLOAT32
from ..arrays.tensor import Array
from ..artifact.folder import Artifact
from ..artifact.manifest import Errors, HookParity
from ..artifact.names import (
    FEATURE_IDS,
    FEATURE_SCALE,
    FEATURE_SHIFT,
    HOOK_ACTS_POST,
    HOOK_INPUT,
    HOOK_OUTPUT,
    HOOK_RECONS,
    INTERVENTION,
    TARGET,
)
from ..devices.options import TF32
from ..errors import IntegrityError
from ..session.interventions import Intervention
from .reference import COMPUTED_HOOKS, Budgets, Reference, SteeredReference

RESIDUAL = "residual."
STEERED = "steered."
UNCERTAIN = "uncertain."
OTHER = f".{HOOK_ACTS_POST.removeprefix('hook_sae_')}"
FLIPS = ".flips"
CHANGED_HOOKS = (HOOK_ACTS_POST, HOOK_RECONS, HOOK_OUTPUT)


def save_golden(steered: SteeredReference, tokens: int, path: str, in_tf32: Reference | None = None) -> None:
    """Write `tokens` of a reference, evenly spaced, to `path`.

    Args:
        steered: the reference.
        tokens: how many.
        path: of the file.
        in_tf32: that of the clean pass at this precision, if there is one.
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
    inputs = steered.original[HOOK_INPUT]
    feeds = steered.subset(sample).intervention.feeds(
        (tokens,), FLOAT32 if inputs.dtype == np.float32 else steered.dtype
    )
    tensors = {HOOK_INPUT: inputs[sample], **original, **residuals, **{k: np.asarray(v) for k, v in feeds.items()}}
    for precision, reference in ((steered.dtype, steered.clean), (TF32, in_tf32)):
        if reference is not None:
            places = np.flatnonzero(reference.is_uncertain[sample])
            acts_post = (
                reference.truth[HOOK_ACTS_POST] if reference.alternative_acts is None else reference.alternative_acts
            )
            tensors[UNCERTAIN + precision] = places
            if reference.flips is not None:
                tensors[UNCERTAIN + precision + FLIPS] = reference.flips[sample].astype(np.int64)
            tensors[UNCERTAIN + precision + OTHER] = acts_post[sample].reshape(-1)[places].astype(np.float32)
    if steered.target is not None:
        tensors[TARGET] = steered.target[sample]
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def load_golden(artifact: Artifact, precision: str = FLOAT32) -> SteeredReference:
    """Return the golden batch of an artifact, with the budgets that the export recorded.

    Args:
        artifact: it.
        precision: "tf32" for a GPU that rounds the factors of float32 products; else what the SAE's dtype is held to.

    Raises:
        IntegrityError: the file is not what the manifest says, or lacks a tensor.
    """
    path = artifact.file(artifact.manifest.golden.file)
    tensors = load_file(path)
    sae, rounded = artifact.manifest.sae, artifact.manifest.parity is None
    budgets, steered_budgets = _budgets(artifact, precision)
    computed = [*sae.hooks[1:], *(STEERED + hook for hook in CHANGED_HOOKS)]
    uncertain = UNCERTAIN + (TF32 if precision == TF32 else sae.dtype)
    needed = {
        HOOK_INPUT,
        *INTERVENTION,
        *computed,
        *(RESIDUAL + name for name in computed),
        uncertain,
        uncertain + OTHER,
    }
    if sae.takes_target:
        needed.add(TARGET)
    if missing := needed - set(tensors):
        raise IntegrityError(f"{path} has no tensor {', '.join(sorted(missing))}. Export the SAE again.")
    truth = {name: tensors[name].astype(np.float64) + tensors[RESIDUAL + name] for name in computed}
    other = truth[HOOK_ACTS_POST].copy()
    places, values = tensors[uncertain], tensors[uncertain + OTHER]
    if places.dtype != np.int64 or places.shape != values.shape or ((places < 0) | (places >= other.size)).any():
        raise IntegrityError(f"{path}: {uncertain} are no places of {list(other.shape)} numbers. Export the SAE again.")
    other.reshape(-1)[places] = values
    clean = Reference(
        {hook: tensors[hook] for hook in sae.hooks},
        {hook: truth[hook] for hook in sae.hooks[1:]},
        sae.use_error_term,
        tensors.get(TARGET),
        sae.dtype,
        budgets,
        rounded=rounded,
        alternative_acts=None if rounded else other,
        flips=None if rounded else tensors.get(uncertain + FLIPS),
    )
    intervention = Intervention(*(tensors[name] for name in (FEATURE_IDS, FEATURE_SCALE, FEATURE_SHIFT)))
    return SteeredReference(
        {**clean.original, **_changed(tensors, clean.original, intervention)},
        {**clean.truth, **_changed(truth, clean.truth, intervention)},
        sae.use_error_term,
        tensors.get(TARGET),
        sae.dtype,
        steered_budgets,
        rounded=rounded,
        clean=clean,
        intervention=intervention,
    )


def _changed(tensors: Mapping[str, Array], clean: Mapping[str, Array], intervention: Intervention) -> dict[str, Array]:
    """Return the hooks that the intervention changed, the columns of the activations put back among the others."""
    changed = {hook: tensors[STEERED + hook] for hook in CHANGED_HOOKS}
    acts_post = clean[HOOK_ACTS_POST].copy()
    acts_post[:, intervention.ids] = changed[HOOK_ACTS_POST]
    return {**changed, HOOK_ACTS_POST: acts_post}


def _budgets(artifact: Artifact, precision: str) -> tuple[Budgets, Budgets]:
    """Return the recorded budgets, without and under an intervention; a hook without one may not err at all."""
    measured, parity = artifact.manifest.record, artifact.manifest.parity

    def complete(recorded: Budgets) -> Budgets:
        return {hook: recorded.get(hook, Errors(0.0, 0.0)) for hook in COMPUTED_HOOKS}

    if precision == TF32 and parity is not None:
        return complete(parity.tf32), complete(parity.tf32_steered)
    return complete(_of(measured.hooks)), complete(_of(measured.steered))


def _of(recorded: Mapping[str, HookParity]) -> Budgets:
    return {hook: parity.budget for hook, parity in recorded.items()}
