"""Run an exported HookedSAE with every hook tensor, and prove that nothing changed. No PyTorch."""

from .artifact import Artifact, read_artifact
from .errors import (
    ArtifactError,
    InputError,
    IntegrityError,
    ManifestError,
    ParityError,
    ProviderError,
    SAEError,
)
from .session import SAESession
from .verify import assert_parity, verify

__all__ = [
    "Artifact",
    "ArtifactError",
    "InputError",
    "IntegrityError",
    "ManifestError",
    "ParityError",
    "ProviderError",
    "SAEError",
    "SAESession",
    "assert_parity",
    "read_artifact",
    "verify",
]
