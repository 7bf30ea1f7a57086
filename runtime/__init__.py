"""Run an exported HookedSAE with every hook tensor, without PyTorch, and prove that nothing changed."""

from typing import TYPE_CHECKING, Any

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
    LimitError,
    ManifestError,
    ParityError,
    ProviderError,
    SAEError,
    SignatureError,
    UnknownHookError,
)
from .session.features import TopFeatures
from .session.hooks import HookPoint
from .session.interventions import Ablate, Add, Clamp, Edit, Intervention, Scale
from .session.route import Plan
from .session.session import SAESession
from .session.watch import FeatureWatch

if TYPE_CHECKING:
    from .hosts.folder import GraftedHost, read_host
    from .hosts.output import HostOutput
    from .hosts.session import HostSession
    from .hosts.verify import assert_parity, verify
    from .parity.outputs import verify_outputs
    from .parity.report import Report, Verdict
else:
    _LATER = {
        "GraftedHost": "hosts.folder",
        "HostOutput": "hosts.output",
        "HostSession": "hosts.session",
        "Report": "parity.report",
        "Verdict": "parity.report",
        "assert_parity": "hosts.verify",
        "read_host": "hosts.folder",
        "verify": "hosts.verify",
        "verify_outputs": "parity.outputs",
    }

    def __getattr__(name: str) -> Any:
        """Import the names of hosts and of proofs when they are first used: a service starts without them."""
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f".{_LATER[name]}", __name__), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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
    "LimitError",
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
    "verify_outputs",
]
