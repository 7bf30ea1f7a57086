"""Proof with PyTorch: an artifact against a HookedSAE, run live on activations."""

import os
from typing import Any

import torch
from safetensors.torch import load_file

from runtime.artifact.folder import Artifact, read_artifact
from runtime.artifact.names import HOOK_INPUT
from runtime.errors import ParityError
from runtime.parity.golden import load_golden
from runtime.parity.report import Report
from runtime.parity.verify import judge_session
from runtime.session.session import SAESession

from ..checkpoints.registry import load
from ..original.exportable import config_of, in_dtype
from .activations import prepare_activations
from .truth import reference_of, steered_reference_of, typical_intervention

COMPUTED_FROM = ("architecture", "d_in", "d_sae", "d_out", "hook_name", "use_error_term")
"""What the config says of the computation, beside the options of an architecture."""


def verify(
    path: str | os.PathLike[str],
    sae: Any = None,
    activations: Any = None,
    device: str = "auto",
    *,
    targets: Any = None,
) -> Report:
    """Return a report on an artifact against a HookedSAE run here and now, with budgets measured here and now.

    The weights must be the same bit for bit, and so must what the config says of the computation; that covers the
    features that no activation happens to switch on. An original in another dtype is converted, as `export` does.

    Args:
        path: the artifact's folder.
        sae: the original; None loads it from the artifact's own weights.
        activations: numpy array or tensor, `(..., d_in)` or `(..., n_heads, d_head)`; None takes the golden inputs.
        device: where the artifact runs.
        targets: for a transcoder with the error term, the activations that it predicts, one for each.

    Raises:
        ArtifactError: the folder is not an artifact, or is not intact.
        ParityError: it has int8 weights.
        ExportError, InputError: the activations do not fit.
        ProviderError: the device cannot be used.
    """
    artifact = read_artifact(path)
    artifact.check_files()
    if artifact.manifest.parity is None:
        raise ParityError(
            f"{artifact.path} has {artifact.manifest.weights_dtype} weights: it is not the original. By how much, "
            "its manifest says (python -m runtime inspect); whether this machine computes the same, runtime.verify."
        )
    config = artifact.manifest.sae
    original = load(path) if sae is None else in_dtype(sae, config.dtype)
    if sae is not None and (problems := _differences(artifact, original)):  # of another shape, it could not even be run
        return Report(f"{artifact.path} is not an export of this SAE", problems=problems)
    if activations is None:
        golden = load_golden(artifact)
        batch, target = golden.original[HOOK_INPUT], golden.target
    else:
        batch, target = prepare_activations(original, config, activations, targets)
    clean = reference_of(original, batch, target)
    steered = steered_reference_of(original, clean, typical_intervention(clean))
    with SAESession(path, device) as session:
        return judge_session(session, steered)


def assert_parity(
    path: str | os.PathLike[str],
    sae: Any = None,
    activations: Any = None,
    device: str = "auto",
    *,
    targets: Any = None,
) -> None:
    """Raise unless an artifact computes what a HookedSAE computes; for a project's own test suite.

    The arguments are those of `verify`.

    Raises:
        ParityError: it does not; the message has every reason: hook, worst index, both values, error and budget.
        ArtifactError, ExportError, InputError, ProviderError: as `verify`.
    """
    verify(path, sae, activations, device, targets=targets).raise_for_failures()


def _differences(artifact: Artifact, sae: Any) -> list[str]:
    """Return in words where the SAE and the artifact's weights and config differ."""
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
                f"{name} differs in {int(different.sum())} of {tensor.numel()} numbers, first at {list(index)}: "
                f"{tensor[index].item()!r} in the artifact, {other[index].item()!r} in the original."
            )
    return problems
