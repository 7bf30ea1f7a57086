"""Export a PyTorch HookedSAE to ONNX with every hook tensor, and prove that nothing changed."""

from runtime.errors import (
    ArtifactError,
    CheckpointError,
    ExportError,
    InputError,
    ParityError,
    ProviderError,
    SAEError,
)

from .checkpoints import load
from .export import export
from .hooked_sae import HookedSAE, HookedSAEConfig
from .verify import assert_parity, verify

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "ExportError",
    "HookedSAE",
    "HookedSAEConfig",
    "InputError",
    "ParityError",
    "ProviderError",
    "SAEError",
    "assert_parity",
    "export",
    "load",
    "verify",
]
