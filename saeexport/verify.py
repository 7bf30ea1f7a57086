"""Proof with PyTorch: an artifact against a HookedSAE, run live on activations."""

import copy
import os
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from runtime.artifact import Artifact, read_artifact
from runtime.golden import load_golden
from runtime.inputs import Array
from runtime.manifest import HOOK_ERROR, HOOK_INPUT, HOOK_NAMES, HOOK_OUTPUT, HOOK_RECONS
from runtime.parity import COMPUTED_HOOKS, Reference, Report
from runtime.session import SAESession
from runtime.verify import judge_session

from .activations import prepare_activations
from .checkpoints import load


def reference_of(sae: Any, activations: Array) -> Reference:
    """Return what PyTorch computes from `activations`, and the truth: the same weights in float64.

    Args:
        sae: a HookedSAE, or any HookedRootModule with the six hooks.
        activations: `(tokens, d_in)` or `(tokens, n_heads, d_head)`, in the SAE's dtype.
    """
    original = six_hooks(sae, activations)
    truth = six_hooks(copy.deepcopy(sae).double(), activations.astype(np.float64))
    return Reference(original, {hook: truth[hook] for hook in COMPUTED_HOOKS}, bool(sae.cfg.use_error_term))


def six_hooks(sae: Any, activations: Array) -> dict[str, Array]:
    """Return all six hooks as PyTorch computes them, the error also where it does not fire."""
    with torch.no_grad():
        output, cache = sae.run_with_cache(torch.from_numpy(activations).to(next(sae.parameters()).device))
    if HOOK_ERROR not in cache:  # it does not fire without the error term
        cache[HOOK_ERROR] = cache[HOOK_INPUT] - cache[HOOK_RECONS]
    cache[HOOK_OUTPUT] = output
    return {hook: cache[hook].cpu().numpy() for hook in HOOK_NAMES}


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
    reference = reference_of(original, batch)
    with SAESession(path, device) as session:
        return judge_session(session, reference, reference.budgets())


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
