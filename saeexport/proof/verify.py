"""Verifies an artifact against a HookedSAE that is run in PyTorch."""

import os
from typing import Any

import torch
from safetensors.torch import load_file

from runtime.artifact.folder import Artifact
from runtime.artifact.names import HOOK_INPUT
from runtime.errors import ParityError
from runtime.parity.golden import load_golden
from runtime.parity.report import Report
from runtime.parity.verify import judge_session, open_verified, read_intact

from ..checkpoints.memory import convert_if_needed
from ..checkpoints.registry import load
from ..original.exportable import config_of, in_dtype
from ..original.selection import select_features
from .activations import check_features, prepare_activations
from .truth import reference_of, steered_reference_of, typical_intervention

COMPUTED_FROM = ("feature_ids", "architecture", "d_in", "d_sae", "d_out", "hook_name", "use_error_term")
"""Fields of the config that the computation depends on, in addition to `options`."""


def verify(
    path: str | os.PathLike[str],
    sae: Any = None,
    activations: Any = None,
    device: str = "auto",
    *,
    targets: Any = None,
    public_key: str | os.PathLike[str] | None = None,
) -> Report:
    """Compare an artifact with a HookedSAE on this machine, and return the report.

    Both are run now, and the budgets are measured now. The weights and the config must be identical as well, which
    covers the features that are off for all of the activations. An original in another dtype is converted, as `export`
    does.

    Args:
        path: Folder of the artifact.
        sae: The original, as for `export`, the whole SAE also if the artifact holds some of its features. None loads it
            from the artifact's own weights.
        activations: Inputs, `(..., d_in)` or `(..., n_heads, d_head)`, as a numpy array or tensor. None uses the golden
            batch.
        device: Device that runs the artifact, as for `runtime.SAESession`.
        targets: Activations that a transcoder with the error term predicts, one for each of `activations`.
        public_key: PEM file with the key or the certificates that the artifact must be signed with, as for
            `runtime.SAESession`. None does not ask for a signature.

    Returns:
        A report with a verdict for each output of each graph. `report.failures` is empty if the artifact is at parity.
        If a file was changed, or the signature is not the one that was asked for, nothing is run.

    Raises:
        ArtifactError: The folder is not an artifact.
        ParityError: The artifact has int8 weights, which are not at parity.
        ExportError: The activations cannot be used, or the SAE cannot be converted.
        InputError: The activations do not fit the SAE, or `public_key` cannot be read.
        ProviderError: The device cannot be used.
    """
    artifact = read_intact(path, public_key)
    if isinstance(artifact, Report):
        return artifact
    if artifact.manifest.parity is None:
        raise ParityError(
            f"{artifact.path} has {artifact.manifest.weights_dtype} weights and is not at parity with the original. "
            "Use python -m runtime inspect to see what it loses, and runtime.verify to check it on this machine."
        )
    config = artifact.manifest.sae
    original = load(path) if sae is None else in_dtype(convert_if_needed(sae, config.dtype), config.dtype)
    if config.feature_ids is not None and getattr(original, "feature_ids", None) is None:  # the whole SAE was given
        original = select_features(original, config.feature_ids)
    if sae is not None and (problems := _differences(artifact, original)):  # of another shape it cannot run
        return Report(f"{artifact.path} is not an export of this SAE", problems=problems, artifact=artifact)
    if activations is None:
        golden = load_golden(artifact)
        batch, target = golden.original[HOOK_INPUT], golden.target
    else:
        batch, target = prepare_activations(original, config, activations, targets)
    clean = reference_of(original, batch, target)
    check_features(clean, activations is not None)
    steered = steered_reference_of(original, clean, typical_intervention(clean))
    with open_verified(artifact, device) as session:
        return judge_session(session, steered)


def assert_parity(
    path: str | os.PathLike[str],
    sae: Any = None,
    activations: Any = None,
    device: str = "auto",
    *,
    targets: Any = None,
    public_key: str | os.PathLike[str] | None = None,
) -> None:
    """Raise an error unless an artifact computes what a HookedSAE computes, for use in test suites.

    The arguments are those of `verify`.

    Raises:
        ParityError: The artifact is not at parity. The message lists every failure with hook, worst index, both values,
            error and budget.
        ArtifactError, ExportError, InputError, ProviderError: As for `verify`.
    """
    verify(path, sae, activations, device, targets=targets, public_key=public_key).raise_for_failures()


def _differences(artifact: Artifact, sae: Any) -> list[str]:
    """Return messages for the differences between the SAE and the weights and config of the artifact."""
    config, stored = artifact.manifest.sae, load_file(artifact.file(artifact.manifest.weights))
    state = {name: tensor.detach().cpu() for name, tensor in sae.state_dict().items()}
    given = config_of(sae, None)
    pairs = {key: (getattr(config, key), getattr(given, key)) for key in COMPUTED_FROM}
    pairs |= {key: (config.options.get(key), given.options.get(key)) for key in {**config.options, **given.options}}
    problems = [
        f"{key} is {found!r} in the artifact and {own!r} in the original."
        for key, (found, own) in pairs.items()
        if found != own
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
                f"{name} differs in {int(different.sum())} of {tensor.numel()} elements, first at {list(index)}: "
                f"{tensor[index].item()!r} in the artifact, {other[index].item()!r} in the original."
            )
    return problems
