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
    UnknownHookError,
)
from .hooks import HookPoint
from .interventions import Ablate, Add, Clamp, Edit, Intervention, Scale
from .session import SAESession
from .verify import assert_parity, verify

__all__ = [
    "Ablate",
    "Add",
    "Artifact",
    "ArtifactError",
    "Clamp",
    "Edit",
    "HookPoint",
    "InputError",
    "IntegrityError",
    "Intervention",
    "ManifestError",
    "ParityError",
    "ProviderError",
    "SAEError",
    "SAESession",
    "Scale",
    "UnknownHookError",
    "assert_parity",
    "read_artifact",
    "verify",
]
