"""Artifacts, whose weights file is the state dict of the HookedSAE that was exported, with its labels."""

from pathlib import Path

from safetensors.torch import load_file

from runtime.artifact.folder import read_artifact
from runtime.artifact.labels import LABELS
from runtime.artifact.manifest import CUSTOM, INT8, MANIFEST
from runtime.errors import CheckpointError

from ...original import architectures
from ...original.dtypes import TORCH_DTYPES
from ...original.hooked_sae import HookedSAE
from ..build import build
from ..request import RECORDED, Request

CONFIG = MANIFEST
WEIGHTS = "weights.safetensors"
BESIDE = (LABELS,)

TITLE = "artifact"
NAME = f"an artifact, a folder with {MANIFEST}"
ARCHITECTURES = tuple(architectures.ARCHITECTURES)


def recognises(path: Path) -> bool:
    """Tell whether `path` is an artifact folder."""
    return (path / MANIFEST).is_file()


def read(path: Path, request: Request) -> HookedSAE:
    """Return the HookedSAE of an artifact.

    Raises:
        ArtifactError: The manifest, the weights or the labels are damaged.
        CheckpointError: The weights are int8, those of a custom class, or do not fit the config.
    """
    artifact = read_artifact(path)
    sae = artifact.manifest.sae
    if artifact.manifest.weights_dtype == INT8:
        raise CheckpointError(
            f"{path} has {artifact.manifest.weights_dtype} weights, from which the original cannot be restored. Load "
            "the checkpoint that it was exported from."
        )
    weights = artifact.file(artifact.manifest.weights)
    if sae.architecture.startswith(CUSTOM):
        name = sae.architecture.removeprefix(CUSTOM)
        raise CheckpointError(
            f"{path} was exported from the custom class {name}. Load it with that class: "
            f'sae = {name}(...); sae.load_state_dict(safetensors.torch.load_file("{weights}"))'
        )
    config = {
        "d_sae": sae.d_sae,
        "d_in": sae.d_in,
        "hook_name": sae.hook_name,
        "model_name": sae.model_name,
        "neuronpedia_id": sae.neuronpedia_id,
        "use_error_term": sae.use_error_term,
        "dtype": request.dtype_for(TORCH_DTYPES[sae.dtype]),
        "seed": sae.seed,
        **sae.options,
        **({} if sae.d_out is None else {"d_out": sae.d_out}),
    }
    original = build(sae.architecture, config, load_file(weights), str(weights))
    original.feature_ids = sae.feature_ids
    original.provenance |= {k: v for k, v in artifact.manifest.provenance.items() if k.startswith(RECORDED)}
    original.labels = artifact.read_labels() or None
    return original
