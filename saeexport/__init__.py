"""Exports a PyTorch HookedSAE to ONNX with all of its hook tensors, and proves that the graphs compute the same."""

from . import _torch  # noqa: F401, I001  before what needs it
from runtime.errors import (
    ArtifactError,
    CheckpointError,
    ExportError,
    GraftError,
    HubError,
    InputError,
    ParityError,
    ProviderError,
    SAEError,
)

from ._export import export
from ._export_all import TreeEntry, export_all
from .checkpoints.memory import convert
from .checkpoints.registry import load
from .grafting.graft import graft
from .grafting.search import locate
from .labels import load_labels
from .original.hooked_sae import HookedSAE, HookedSAEConfig
from .original.selection import select_features
from .proof.verify import assert_parity, verify
from .signing import sign

__all__ = [
    "ArtifactError",
    "CheckpointError",
    "ExportError",
    "GraftError",
    "HookedSAE",
    "HookedSAEConfig",
    "HubError",
    "InputError",
    "ParityError",
    "ProviderError",
    "SAEError",
    "TreeEntry",
    "assert_parity",
    "convert",
    "export",
    "export_all",
    "graft",
    "load",
    "load_labels",
    "locate",
    "select_features",
    "sign",
    "verify",
]
