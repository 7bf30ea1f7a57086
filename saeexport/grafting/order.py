"""The hooks that SAEs read and replace, in the order in which a host computes the values there."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .grafts import Graft
from .names import block_of


@dataclass(frozen=True)
class HookInHost:
    """A hook whose activation an SAE reads or replaces.

    Attributes:
        name: Name of the hook.
        value: Name of the host's value.
        graft: The SAE.
    """

    name: str
    value: str
    graft: Graft

    @property
    def is_replaced(self) -> bool:
        """Whether the SAE's output replaces the activation; the output of a transcoder replaces its target only."""
        return self.name == self.graft.replaced_hook


def in_order(host: Mapping[str, Any], grafts: Iterable[Graft]) -> list[HookInHost]:
    """Return every hook that an SAE reads or replaces, in the order in which a host computes the values.

    Hooks at one value are in the order of their blocks, in which TransformerLens calls them: first the end of a block,
    then the beginning of the next one.

    Args:
        host: The values of the host by name, in order.
        grafts: The SAEs.
    """
    order = {name: i for i, name in enumerate(host)}
    hooks = []
    for graft in grafts:
        hooks.append(HookInHost(graft.hook, graft.value, graft))
        if graft.target is not None:
            hooks.append(HookInHost(graft.target.hook, graft.target.value, graft))
    return sorted(hooks, key=lambda hook: (order[hook.value], block_of(hook.name)))


def cuts_of(hooks: Sequence[HookInHost]) -> tuple[str, ...]:
    """Return the hooks for the manifest, which leaves them out if they are those of its SAEs."""
    return tuple(hook.name for hook in hooks) if any(not hook.is_replaced for hook in hooks) else ()
