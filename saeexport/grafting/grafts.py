"""SAEs and where they are grafted: the hooks, and the values of the host at them."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from runtime.artifact.folder import Artifact
from runtime.artifact.manifest import SAEConfig
from runtime.errors import GraftError

from .probe import FLOATS


@dataclass(frozen=True)
class Target:
    """The activation of a host that a transcoder predicts.

    Attributes:
        hook: Name of the hook.
        value: Name of the host's value.
    """

    hook: str
    value: str


@dataclass(frozen=True)
class Graft:
    """An SAE and where it is grafted.

    Attributes:
        hook: Name of the hook, which is the prefix of every name that belongs to the SAE.
        artifact: The SAE.
        folder: Folder of the SAE, relative to that of the graphs, with "/".
        value: Name of the host's value.
        target: For a transcoder, the activation that it predicts; None for an SAE, whose output replaces what it reads,
            and for a transcoder that is grafted for its features only.
    """

    hook: str
    artifact: Artifact
    folder: str
    value: str
    target: Target | None = None

    @property
    def replaced_hook(self) -> str:
        """The hook whose activation the output replaces."""
        return self.hook if self.target is None else self.target.hook

    @property
    def sae(self) -> SAEConfig:
        """The configuration of the SAE."""
        return self.artifact.manifest.sae


def trailing_dimensions(x: ir.Value, graft: Graft) -> int:
    """Return how many trailing dimensions of a host's value make one token's activation: 1, or 2 with heads.

    Raises:
        GraftError: The value does not have the SAE's width, or is not of a floating-point dtype.
    """
    given = f"{graft.value} has shape {x.shape} and dtype {x.dtype} in the host"
    takes = f"the SAE at {graft.hook} takes (..., {', '.join(map(str, graft.sae.input_shape))})"
    if x.dtype not in FLOATS:
        raise GraftError(f"{given}; {takes} in a floating-point dtype.")
    sizes = [size if isinstance(size, int) else None for size in (x.shape or ())]
    if len(sizes) > 1 and sizes[-1] == graft.sae.d_in:
        return 1
    if len(sizes) > 2 and sizes[-1] and sizes[-2] and sizes[-1] * sizes[-2] == graft.sae.d_in:
        return 2
    raise GraftError(f"{given}; {takes}. Name another value: --sae {graft.hook}@VALUE=ARTIFACT.")


def check_target(values: Mapping[str, ir.Value], graft: Graft) -> None:
    """Refuse a target that a transcoder cannot replace.

    Args:
        values: Values of the host by name, in order.
        graft: The transcoder and its place.

    Raises:
        GraftError: The value does not have the transcoder's output width, is not of a floating-point dtype, or is
            computed before what the transcoder reads.
    """
    assert graft.target is not None
    target, names = values[graft.target.value], list(values)
    given = f"{target.name} has shape {target.shape} and dtype {target.dtype} in the host"
    other = f"Name another value: --sae {graft.hook},{graft.target.hook}@VALUE=ARTIFACT."
    if target.dtype not in FLOATS or not target.shape or target.shape[-1] != graft.sae.d_out:
        raise GraftError(
            f"{given}; the transcoder at {graft.hook} predicts (..., {graft.sae.d_out}) in a floating-point dtype. "
            f"{other}"
        )
    if names.index(graft.target.value) < names.index(graft.value):
        raise GraftError(
            f"The host computes {graft.target.value}, which the transcoder at {graft.hook} predicts, before "
            f"{graft.value}, which it reads. {other}"
        )
