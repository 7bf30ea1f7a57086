"""Places the SAEs that a caller asks for in a host: at values that are found and confirmed, in the host's order."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import GraftError
from runtime.hosts.manifest import Evidence
from runtime.hosts.names import sae_folder

from .asked import Asked, AskedHook
from .candidates import Reference
from .grafts import Graft, Target, check_target, trailing_dimensions
from .host import Host
from .locate import Located, find
from .order import in_order


@dataclass(frozen=True)
class Placed:
    """An SAE with its place in the host.

    Attributes:
        graft: The SAE and its place.
        evidence: How the value that it reads was identified.
        of_target: How the target of a transcoder was identified; None if it does not have one.
    """

    graft: Graft
    evidence: Evidence
    of_target: Evidence | None


def locate_all(host: Host, asked: Sequence[Asked], reference: Reference, force: bool) -> list[Placed]:
    """Return the SAEs with their places, in the order in which the host computes what they replace; see `in_order`.

    Raises:
        GraftError: A value cannot be found or confirmed.
    """
    placed = {each.read.hook: _locate(host, each, reference, force) for each in asked}
    hooks = in_order(host.values(), [each.graft for each in placed.values()])
    return [placed[hook.graft.hook] for hook in hooks if hook.is_replaced]


def _locate(host: Host, asked: Asked, reference: Reference, force: bool) -> Placed:
    """Return an SAE with its place."""
    values, artifact = host.values(), asked.artifact

    def find_value(hook: AskedHook, is_target: bool) -> Located:
        if hook.value is not None and hook.value not in values:
            raise GraftError(
                f"The host {host.path} does not compute a value {hook.value}. saeexport locate lists those that fit."
            )
        forced = force and hook.value is not None
        return find(host, hook.hook, artifact, reference, hook.value, forced, is_target)

    located = find_value(asked.read, is_target=False)
    found = Graft(asked.read.hook, artifact, sae_folder(asked.read.hook), located.value)
    trailing_dimensions(values[located.value], found)
    if asked.target is None:
        return Placed(found, located.evidence, None)
    predicted = find_value(asked.target, is_target=True)
    found = dataclasses.replace(found, target=Target(asked.target.hook, predicted.value))
    check_target(values, found)
    return Placed(found, located.evidence, predicted.evidence)
