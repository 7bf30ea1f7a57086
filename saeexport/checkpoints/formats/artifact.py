"""An artifact is its own checkpoint: its weights file is the HookedSAE's state dict."""

from pathlib import Path

from safetensors.torch import load_file

from runtime.artifact.folder import read_artifact
from runtime.artifact.manifest import CUSTOM, INT8, MANIFEST
from runtime.errors import CheckpointError

from ...original import architectures
from ...original.hooked_sae import HookedSAE
from ..build import build

TITLE = "artifact"
NAME = f"an artifact, a folder with {MANIFEST}"
ARCHITECTURES = tuple(architectures.ARCHITECTURES)


def recognises(path: Path) -> bool:
    """Tell whether `path` is an artifact folder."""
    return (path / MANIFEST).is_file()


def read(path: Path) -> HookedSAE:
    """Return the HookedSAE of an artifact.

    Raises:
        ArtifactError: its manifest or weights are not sound.
        CheckpointError: its weights are not those of its config.
    """
    artifact = read_artifact(path)
    sae = artifact.manifest.sae
    if artifact.manifest.weights_dtype == INT8:
        raise CheckpointError(
            f"{path} has {artifact.manifest.weights_dtype} weights, from which the original cannot be made again. Load "
            "the checkpoint that it was exported from."
        )
    weights = artifact.file(artifact.manifest.weights)
    if sae.architecture.startswith(CUSTOM):
        name = sae.architecture.removeprefix(CUSTOM)
        raise CheckpointError(
            f"{path} was exported from {name}, a class of its owner's, which alone can make it again: "
            f'sae = {name}(...); sae.load_state_dict(safetensors.torch.load_file("{weights}"))'
        )
    config = {
        "d_sae": sae.d_sae,
        "d_in": sae.d_in,
        "hook_name": sae.hook_name,
        "model_name": sae.model_name,
        "neuronpedia_id": sae.neuronpedia_id,
        "use_error_term": sae.use_error_term,
        "dtype": sae.dtype,
        "seed": sae.seed,
        **sae.options,
        **({} if sae.d_out is None else {"d_out": sae.d_out}),
    }
    return build(sae.architecture, config, load_file(weights), str(weights))
