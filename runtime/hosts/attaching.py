"""Which SAEs are attached to the host, and with which edits, for each caller.

What `add_sae` attaches applies to every caller. What a block attaches or edits applies to the thread or asyncio task
that entered the block, like the hook functions of a session.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from ..arrays.tensor import Array
from ..artifact.names import HOOK_ERROR
from ..errors import ArtifactError, InputError, UnknownHookError
from ..session.callers import PerCaller
from ..session.interventions import Edit, Intervention
from .folder import GraftedHost
from .names import SPLICE

HostEdits: TypeAlias = Mapping[str, Mapping[int, Edit] | Intervention]
"""Edits of features by hook: a dict from feature ids to edits, or an intervention."""

Hooks: TypeAlias = str | Sequence[str]
"""The name of a hook, or a list of names."""


@dataclass(frozen=True)
class Setup:
    """What applies to a call.

    Attributes:
        attached: Whether the error term is on, for each hook with an attached SAE, in the order of the graph.
        edits: The edits of features, by hook.
    """

    attached: Mapping[str, bool] = field(default_factory=dict)
    edits: Mapping[str, Intervention] = field(default_factory=dict)


class Attachments:
    """The attached SAEs of a session.

    Args:
        host: The host.
    """

    def __init__(self, host: GraftedHost) -> None:
        self._host = host
        self._added: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._blocks: PerCaller[list[Setup]] = PerCaller("attached")  # the outermost block first

    def current(self) -> Setup:
        """Return what applies to the caller. Of several edits of a hook, that of the outer block comes first."""
        attached, edits = dict(self._added), dict[str, Intervention]()
        for setup in self._setups():
            attached.update(setup.attached)
            for hook, intervention in setup.edits.items():
                edits[hook] = followed_by(edits[hook], intervention) if hook in edits else intervention
        return Setup({hook: attached[hook] for hook in self._host.saes if hook in attached}, edits)

    @property
    def is_in_block(self) -> bool:
        """Whether the caller is in a block."""
        return bool(self._setups())

    def names_of(self, hooks: Hooks) -> list[str]:
        """Return the hooks that a caller names, as a list.

        Raises:
            UnknownHookError: No SAE was grafted at one of them.
            InputError: `hooks` is not the name of a hook, or a list of names.
        """
        if not isinstance(hooks, (str, Sequence)):
            raise InputError(f"The SAEs are {hooks!r}; they must be the name of a hook, or a list of names.")
        names = [hooks] if isinstance(hooks, str) else list(hooks)
        for name in names:
            self.check_name(name)
        return names

    def check_name(self, hook: str) -> None:
        """Refuse a hook at which no SAE was grafted.

        Raises:
            UnknownHookError: `hook` is not the name of one.
        """
        if not isinstance(hook, str) or hook not in self._host.saes:
            raise UnknownHookError(
                f"{hook!r}: no SAE was grafted at such a hook. There are {', '.join(self._host.saes)}."
            )

    def chosen(self, saes: Hooks, use_error_term: bool | None) -> dict[str, bool]:
        """Return whether the error term is on for each of some SAEs, which can be attached.

        Raises:
            UnknownHookError: No SAE was grafted at one of the hooks.
            InputError: `use_error_term` is not a bool or None, or an SAE does not have the error term.
            ArtifactError: The folder does not have a splice.
        """
        if use_error_term is not None and not isinstance(use_error_term, (bool, np.bool_)):
            raise InputError(f"use_error_term is {use_error_term!r}; it must be True, False or None.")
        attached = {}
        for hook in self.names_of(saes):
            sae = self._host.saes[hook].manifest.sae
            attached[hook] = sae.use_error_term if use_error_term is None else bool(use_error_term)
            if attached[hook] and HOOK_ERROR not in sae.hooks:
                raise InputError(
                    f"use_error_term is True, and the transcoder at {hook} was exported without the error term. Export "
                    "it again with saeexport export --error-term, and graft that."
                )
        if attached and SPLICE not in self._host.manifest.graphs:
            raise ArtifactError(
                f"{self._host.path} does not have the graph {SPLICE!r}, in which SAEs are attached; it has "
                f"{', '.join(self._host.manifest.graphs)}. Graft the SAEs again with the mode splice."
            )
        return attached

    def steered(self, edits: HostEdits, use_error_term: bool | None) -> Setup:
        """Return the setup of a block that edits features: SAEs that are attached keep their error terms.

        Raises:
            UnknownHookError: As for `chosen`, as is `ArtifactError`.
            InputError: As for `chosen`; also `Intervention` refuses the edits.
        """
        if not isinstance(edits, Mapping):
            raise InputError(f"The edits are {edits!r}; they must be a dict from hooks to edits of their features.")
        chosen, before = self.chosen(list(edits), use_error_term), self.current().attached
        interventions = {}
        for hook, own in edits.items():
            interventions[hook] = own if isinstance(own, Intervention) else Intervention.of(own)
            cfg = self._host.saes[hook].manifest.sae
            interventions[hook].check(cfg.d_sae, cfg.dtype)
        return Setup({hook: before.get(hook, on) for hook, on in chosen.items()}, interventions)

    def add(self, attached: Mapping[str, bool]) -> None:
        """Attach SAEs for every caller."""
        with self._lock:
            self._added = {**self._added, **attached}

    def reset(self, hooks: Sequence[str]) -> None:
        """Detach SAEs: those that were added, and those of the blocks that the caller is in."""
        with self._lock:
            self._added = {hook: on for hook, on in self._added.items() if hook not in hooks}
        for setup in self._setups():
            for hook in hooks:
                for what in (setup.attached, setup.edits):
                    assert isinstance(what, dict)
                    what.pop(hook, None)

    @contextmanager
    def block(self, setup: Setup, keep: bool = False) -> Iterator[None]:
        """Apply a setup to the caller inside a `with` block; `keep` attaches its SAEs for every caller at its end.

        Blocks of generators may end in another order than that in which they began.
        """
        own = Setup(dict(setup.attached), dict(setup.edits))
        setups = self._blocks.get_or_make(list)
        setups.append(own)
        try:
            yield
        finally:
            del setups[next(i for i, other in enumerate(setups) if other is own)]
            if not setups:
                self._blocks.remove(setups)
            if keep:
                self.add(own.attached)

    def _setups(self) -> tuple[Setup, ...]:
        return tuple(self._blocks.get() or ())


def followed_by(first: Intervention, second: Intervention) -> Intervention:
    """Return one intervention with the effect of two, one after the other: `(a * s1 + b1) * s2 + b2`."""
    ids = np.union1d(first.ids, second.ids)

    def spread(intervention: Intervention) -> tuple[Array, Array]:
        full = []
        for values, neutral in ((intervention.scale, 1.0), (intervention.shift, 0.0)):
            full.append(np.full((*values.shape[:-1], len(ids)), neutral))
            full[-1][..., np.searchsorted(ids, intervention.ids)] = values
        return full[0], full[1]

    scale, shift = spread(first)
    factor, summand = spread(second)
    return Intervention(ids, scale * factor, shift * factor + summand)
