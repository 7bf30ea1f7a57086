"""`golden.safetensors`: inputs with what PyTorch computed from them and the truth, to be proved again anywhere.

It holds the six hooks by their names, as PyTorch computed them, `(tokens, ...)`; `feature_ids`, `feature_scale` and
`feature_shift`, an intervention as `steer.onnx` takes it; and what that changed: `steered.hook_sae_recons` and
`steered.hook_sae_output`, and of `steered.hook_sae_acts_post` the columns `feature_ids`, `(tokens, m)`.

A transcoder with the error term has `target` too, and one without has no `hook_sae_error`.

For every computed tensor there is `residual.<name>`, float32: the truth in float64 less what PyTorch computed. It is
small, so that float32 keeps the truth to about 14 digits in half the space.
"""

from collections.abc import Mapping

import numpy as np
from safetensors.numpy import load_file, save_file

from .artifact import Artifact
from .errors import IntegrityError
from .inputs import Array
from .interventions import Intervention
from .manifest import Errors, HookParity
from .names import (
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
from .parity import COMPUTED_HOOKS, Budgets, Reference, SteeredReference

RESIDUAL = "residual."
STEERED = "steered."
CHANGED_HOOKS = (HOOK_ACTS_POST, HOOK_RECONS, HOOK_OUTPUT)


def save_golden(steered: SteeredReference, tokens: int, path: str) -> None:
    """Write `tokens` of a reference, evenly spaced, to `path`."""
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
    feeds = steered.intervention.feeds((tokens,), inputs.dtype)
    tensors = {HOOK_INPUT: inputs[sample], **original, **residuals, **feeds}
    if steered.target is not None:
        tensors[TARGET] = steered.target[sample]
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, path)


def load_golden(artifact: Artifact) -> SteeredReference:
    """Return the golden batch of an artifact, with the budgets that the export recorded.

    Raises:
        IntegrityError: the file is not what the manifest says, or lacks a tensor.
    """
    path = artifact.file(artifact.manifest.golden.file)
    tensors = load_file(path)
    sae, measured = artifact.manifest.sae, artifact.manifest.record
    rounded = artifact.manifest.parity is None
    computed = [*sae.hooks[1:], *(STEERED + hook for hook in CHANGED_HOOKS)]
    needed = {HOOK_INPUT, *INTERVENTION, *computed, *(RESIDUAL + name for name in computed)}
    if sae.takes_target:
        needed.add(TARGET)
    if missing := needed - set(tensors):
        raise IntegrityError(f"{path} has no tensor {', '.join(sorted(missing))}. Export the SAE again.")
    truth = {name: tensors[name].astype(np.float64) + tensors[RESIDUAL + name] for name in computed}
    clean = Reference(
        {hook: tensors[hook] for hook in sae.hooks},
        {hook: truth[hook] for hook in sae.hooks[1:]},
        sae.use_error_term,
        tensors.get(TARGET),
        _budgets(measured.hooks),
        rounded=rounded,
    )
    intervention = Intervention(*(tensors[name] for name in (FEATURE_IDS, FEATURE_SCALE, FEATURE_SHIFT)))
    return SteeredReference(
        {**clean.original, **_changed(tensors, clean.original, intervention)},
        {**clean.truth, **_changed(truth, clean.truth, intervention)},
        sae.use_error_term,
        tensors.get(TARGET),
        _budgets(measured.steered),
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


def _budgets(recorded: Mapping[str, HookParity]) -> Budgets:
    """Return the budgets that were recorded; a hook without one may not err at all."""
    return {hook: recorded[hook].budget if hook in recorded else Errors(0.0, 0.0) for hook in COMPUTED_HOOKS}
