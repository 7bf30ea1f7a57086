"""Places the SAEs that a caller asks for in a host: at values that are found and confirmed, in the host's order."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import GraftError
from runtime.hosts.manifest import Evidence
from runtime.hosts.names import sae_folder

from ..graphs.passes.tools.subgraph import subgraphs_of
from .asked import Asked, AskedHook
from .candidates import Reference
from .grafts import Graft, Target, check_target, trailing_dimensions
from .host import Host
from .locate import Located, find
from .order import in_order
from .probe import FLOATS


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
        if hook.value is not None:
            _check_value(host, hook.hook, hook.value)
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


def _check_value(host: Host, hook: str, name: str) -> None:
    """Refuse the name of a value that an SAE can neither read nor replace.

    Raises:
        GraftError: The host does not compute it, or does so inside of a subgraph or a function, or it is quantised.
    """
    value = host.values().get(name)
    if value is None and (inside := _around(host, name)):
        raise GraftError(
            f"{hook}: the host {host.path} computes {name} inside of {inside}. SAEs are grafted into the outermost "
            "graph only: export the host without control flow and local functions."
        )
    if value is None:
        raise GraftError(
            f"The host {host.path} does not compute a value {name}. saeexport locate lists those that fit."
        )
    if value.dtype is not None and value.dtype not in FLOATS:
        raise GraftError(
            f"{hook}: {name} is {value.dtype} in the host {host.path}. An SAE reads floating-point values; a quantised "
            "one cannot be replaced: graft into the model before it is quantised."
        )


def _around(host: Host, name: str) -> str:
    """Return the node or function of a host whose subgraph computes a value; "" if there is none."""
    for node in host.graph:
        for graph in subgraphs_of(node):
            if any(output.name == name for inner in graph.all_nodes() for output in inner.outputs):
                return f"the {node.op_type} {node.name or node.outputs[0].name}"
    for function in host.model.functions.values():
        if any(output.name == name for inner in function.all_nodes() for output in inner.outputs):
            return f"the function {function.domain}.{function.name}"
    return ""
