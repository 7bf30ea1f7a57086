"""Exports a PyTorch HookedSAE to ONNX with all of its hook tensors, and proves that the graphs compute the same."""

from runtime.errors import ArtifactError, CheckpointError, ExportError, InputError, ParityError, ProviderError, SAEError

from ._export import export
from .checkpoints.memory import convert
from .checkpoints.registry import load
from .original.hooked_sae import HookedSAE, HookedSAEConfig
from .proof.verify import assert_parity, verify

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
    "convert",
    "export",
    "load",
    "verify",
]
