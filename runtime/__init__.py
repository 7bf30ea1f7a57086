"""Run an exported HookedSAE with every hook tensor, and prove that nothing changed. No PyTorch."""

from . import _onnxruntime  # noqa: F401
from .arrays.tensor import Tensor
from .artifact.folder import Artifact, read_artifact
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
from .parity.verify import assert_parity, verify
from .session.features import TopFeatures
from .session.hooks import HookPoint
from .session.interventions import Ablate, Add, Clamp, Edit, Intervention, Scale
from .session.route import Plan
from .session.session import SAESession

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
