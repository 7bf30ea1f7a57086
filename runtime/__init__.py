"""Run an exported HookedSAE with every hook tensor, without PyTorch, and prove that nothing changed."""

from . import _onnxruntime  # noqa: F401
from .arrays.tensor import Tensor
from .artifact.folder import Artifact, read_artifact
from .artifact.labels import Example, Label, Labels
from .artifact.manifest import Manifest, SAEConfig
from .errors import (
    ArtifactError,
    HubConnectionError,
    HubEntryError,
    HubError,
    InputError,
    IntegrityError,
    ManifestError,
    ParityError,
    ProviderError,
    SAEError,
    SignatureError,
    UnknownHookError,
)
from .hosts.folder import GraftedHost, read_host
from .hosts.output import HostOutput
from .hosts.session import HostSession
from .hosts.verify import assert_parity, verify
from .parity.report import Report, Verdict
from .session.features import TopFeatures
from .session.hooks import HookPoint
from .session.interventions import Ablate, Add, Clamp, Edit, Intervention, Scale
from .session.route import Plan
from .session.session import SAESession
from .session.watch import FeatureWatch

__all__ = [
    "Ablate",
    "Add",
    "Artifact",
    "ArtifactError",
    "Clamp",
    "Edit",
    "Example",
    "FeatureWatch",
    "GraftedHost",
    "HookPoint",
    "HostOutput",
    "HostSession",
    "HubConnectionError",
    "HubEntryError",
    "HubError",
    "InputError",
    "IntegrityError",
    "Intervention",
    "Label",
    "Labels",
    "Manifest",
    "ManifestError",
    "ParityError",
    "Plan",
    "ProviderError",
    "Report",
    "SAEConfig",
    "SAEError",
    "SAESession",
    "Scale",
    "SignatureError",
    "Tensor",
    "TopFeatures",
    "UnknownHookError",
    "Verdict",
    "assert_parity",
    "read_artifact",
    "read_host",
    "verify",
]
