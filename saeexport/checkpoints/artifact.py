"""An artifact is its own checkpoint: its weights file is the HookedSAE's state dict."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from runtime.artifact import read_artifact
from runtime.manifest import MANIFEST

from ..hooked_sae import HookedSAE, HookedSAEConfig
from .build import build

NAME = f"an artifact, a folder with {MANIFEST}"


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
    weights = artifact.file(artifact.manifest.weights)
    cfg = HookedSAEConfig(
        d_sae=sae.d_sae,
        d_in=sae.d_in,
        hook_name=sae.hook_name,
        use_error_term=sae.use_error_term,
        dtype=getattr(torch, sae.dtype),
        seed=sae.seed,
    )
    return build(cfg, load_file(weights), str(weights))
