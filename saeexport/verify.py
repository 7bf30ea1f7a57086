"""Proof with PyTorch: an artifact against a HookedSAE, run live on activations."""

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from runtime.artifact import Artifact, read_artifact
from runtime.golden import load_golden
from runtime.inputs import Array
from runtime.interventions import Intervention
from runtime.manifest import HOOK_ACTS_POST, HOOK_ERROR, HOOK_INPUT, HOOK_NAMES, HOOK_OUTPUT, HOOK_RECONS
from runtime.parity import COMPUTED_HOOKS, Reference, Report, SteeredReference
from runtime.session import SAESession
from runtime.verify import judge_session

from .activations import prepare_activations
from .checkpoints import load

EDITED_FEATURES = 8
"""How many features the intervention edits by which `steer.onnx` is proved: two of each kind."""


def reference_of(sae: Any, activations: Array) -> Reference:
    """Return what PyTorch computes from `activations`, and the truth: the same weights in float64.

    Args:
        sae: a HookedSAE, or any HookedRootModule with the six hooks.
        activations: `(tokens, d_in)` or `(tokens, n_heads, d_head)`, in the SAE's dtype.
    """
    original, truth = _original_and_truth(sae, activations)
    return Reference(original, truth, bool(sae.cfg.use_error_term))


def steered_reference_of(sae: Any, clean: Reference, intervention: Intervention) -> SteeredReference:
    """Return what PyTorch computes from the inputs of `clean` under an intervention, and the truth of it."""
    hook = (HOOK_ACTS_POST, torch_hook(intervention))
    original, truth = _original_and_truth(sae, clean.original[HOOK_INPUT], hook)
    return SteeredReference(original, truth, clean.use_error_term, clean=clean, intervention=intervention)


def torch_hook(intervention: Intervention) -> Callable[..., Tensor]:
    """Return an intervention as a hook function for `hook_sae_acts_post` of the PyTorch original."""

    def edit(acts_post: Tensor, hook: Any = None) -> Tensor:
        ids, scale, shift = (
            torch.as_tensor(values, device=acts_post.device)
            for values in (intervention.ids, intervention.scale, intervention.shift)
        )
        edited = acts_post.clone()
        edited[..., ids] = edited[..., ids] * scale.to(acts_post.dtype) + shift.to(acts_post.dtype)
        return edited

    return edit


def typical_intervention(reference: Reference) -> Intervention:
    """Return edits of every kind, of the features that are most often on and of the one that is least often.

    The values are of the size of the activations, so that every edit shows in the reconstruction.
    """
    acts_post = reference.original[HOOK_ACTS_POST]
    on = (acts_post != 0).sum(axis=0)
    by_use = np.argsort(-on, kind="stable")
    ids = by_use if len(by_use) <= EDITED_FEATURES else np.append(by_use[: EDITED_FEATURES - 1], by_use[-1])
    size = np.array([acts_post[acts_post[:, j] != 0, j].mean() if on[j] else 1.0 for j in ids], acts_post.dtype)
    scale, shift = (np.resize(kinds, len(ids)) for kinds in ([0, 0, 3, 1], [0, 1, 0, 1]))  # ablate, clamp, scale, add
    return Intervention(ids, scale, shift * size)


def six_hooks(sae: Any, activations: Array, *fwd_hooks: tuple[str, Callable[..., Any]]) -> dict[str, Array]:
    """Return all six hooks as PyTorch computes them, the error also where it does not fire."""
    with torch.no_grad(), sae.hooks(fwd_hooks=list(fwd_hooks)):
        output, cache = sae.run_with_cache(torch.from_numpy(activations).to(next(sae.parameters()).device))
    if HOOK_ERROR not in cache:  # it does not fire without the error term
        clean = six_hooks(sae, activations)[HOOK_RECONS] if fwd_hooks else cache[HOOK_RECONS].cpu().numpy()
        cache[HOOK_ERROR] = cache[HOOK_INPUT] - torch.from_numpy(clean).to(cache[HOOK_INPUT].device)
    cache[HOOK_OUTPUT] = output
    return {hook: cache[hook].cpu().numpy() for hook in HOOK_NAMES}


def _original_and_truth(
    sae: Any, activations: Array, *fwd_hooks: tuple[str, Callable[..., Any]]
) -> tuple[dict[str, Array], dict[str, Array]]:
    original = six_hooks(sae, activations, *fwd_hooks)
    truth = six_hooks(copy.deepcopy(sae).double(), activations.astype(np.float64), *fwd_hooks)
    return original, {hook: truth[hook] for hook in COMPUTED_HOOKS}


def verify(
    path: str | os.PathLike[str],
    sae: Any = None,
    activations: Any = None,
    device: str = "auto",
) -> Report:
    """Return a report on an artifact against a HookedSAE run here and now, with budgets measured here and now.

    The weights must be the same bit for bit, and so must what the config says of the computation; that covers the
    features that no activation happens to switch on.

    Args:
        path: the artifact's folder.
        sae: the original; None loads it from the artifact's own weights.
        activations: numpy array or tensor, `(..., d_in)` or `(..., n_heads, d_head)`; None takes the golden inputs.
        device: where the artifact runs.

    Raises:
        ArtifactError: the folder is not an artifact, or is not intact.
        ExportError, InputError: the activations do not fit.
        ProviderError: the device cannot be used.
    """
    artifact = read_artifact(path)
    artifact.check_files()
    config = artifact.manifest.sae
    original = load(path) if sae is None else sae
    if sae is not None and (problems := _differences(artifact, sae)):  # of another shape, it could not even be run
        return Report(f"{artifact.path} is not an export of this SAE", problems=problems)
    if activations is None:
        batch = load_golden(artifact).original[HOOK_INPUT]
    else:
        batch = prepare_activations(original, config, activations)
    clean = reference_of(original, batch)
    steered = steered_reference_of(original, clean, typical_intervention(clean))
    with SAESession(path, device) as session:
        return judge_session(session, steered)


def assert_parity(
    path: str | os.PathLike[str],
    sae: Any = None,
    activations: Any = None,
    device: str = "auto",
) -> None:
    """Raise unless an artifact computes what a HookedSAE computes; for a project's own test suite.

    The arguments are those of `verify`.

    Raises:
        ParityError: it does not; the message has every reason: hook, worst index, both values, error and budget.
        ArtifactError, ExportError, InputError, ProviderError: as `verify`.
    """
    verify(path, sae, activations, device).raise_for_failures()


def _differences(artifact: Artifact, sae: Any) -> list[str]:
    """Return in words where the SAE and the artifact's weights and config differ."""
    config, stored = artifact.manifest.sae, load_file(artifact.file(artifact.manifest.weights))
    state = {name: tensor.detach().cpu() for name, tensor in sae.state_dict().items()}
    problems = [
        f"{key} is {getattr(config, key)!r} in the artifact and {getattr(sae.cfg, key)!r} in the original."
        for key in ("d_in", "d_sae", "hook_name", "use_error_term")
        if getattr(config, key) != getattr(sae.cfg, key)
    ]
    if set(stored) != set(state):
        return [*problems, f"The artifact has the weights {sorted(stored)}, the original {sorted(state)}."]
    for name, tensor in stored.items():
        other = state[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            problems.append(
                f"{name} is {list(tensor.shape)} {tensor.dtype} in the artifact and {list(other.shape)} {other.dtype} "
                "in the original."
            )
        elif not torch.equal(tensor, other):
            different = tensor != other
            index = tuple(int(i) for i in different.nonzero()[0])
            problems.append(
                f"{name} differs in {int(different.sum())} of {tensor.numel()} numbers, first at {list(index)}: "
                f"{tensor[index].item()!r} in the artifact, {other[index].item()!r} in the original."
            )
    return problems
