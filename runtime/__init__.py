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
from .features import TopFeatures
from .hooks import HookPoint
from .interventions import Ablate, Add, Clamp, Edit, Intervention, Scale
from .plan import Plan
from .session import SAESession
from .tensor import Tensor
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
    "Plan",
    "ProviderError",
    "SAEError",
    "SAESession",
    "Scale",
    "Tensor",
    "TopFeatures",
    "UnknownHookError",
    "assert_parity",
    "read_artifact",
    "verify",
]
