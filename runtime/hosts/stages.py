"""The host in stages: Python code runs at every hook, so that functions can read or replace any tensor of an SAE.

The graph of stage i ends at the i-th hook. What a function or an SAE makes of the tensor there is what the next stage
goes on from. Two SAEs at one tensor have no stage between them: the second reads what the first gave. The tensor that a
transcoder reads is kept until the host has come to its target.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..arrays.dtypes import FLOAT32
from ..arrays.tensor import Array, as_given, feed_of
from ..artifact.names import HOOK_ACTS_POST, HOOK_ERROR, HOOK_NAMES, HOOK_OUTPUT
from ..errors import ArtifactError
from ..session.batch import Batch
from ..session.forward import SteeringHook, call_hook, check_returned, forward
from ..session.graphs import Graphs
from ..session.hooks import HookPoint, PlacedHook
from .attaching import Setup
from .feeds import tokens_of
from .graphs import HostGraphs
from .manifest import GraftedSAE, HostManifest
from .names import at, stage
from .overflow import tokens_too_large, warn_of_overflow

HEADS = "hook_z"
"""A hook whose activations have heads, `(n_heads, d_head)` for each token."""

SAEGraphs = Callable[[str], Graphs]
"""A function that returns the graphs of the SAE at a hook."""


@dataclass(frozen=True)
class StagedPass:
    """A pass of the host in stages.

    Attributes:
        manifest: Manifest of the host.
        graphs: Graphs of the host.
        sae_graphs: Function that returns the graphs of the SAE at a hook.
        setup: The attached SAEs and the edits.
        placed: Hook functions, by their full name, in the order in which they are called.
        points: Hook points by their full name.
        fired: The tensors of the hooks that fired, by their full name, in firing order.
        read: The tensors that transcoders read, by hook.
    """

    manifest: HostManifest
    graphs: HostGraphs
    sae_graphs: SAEGraphs
    setup: Setup
    placed: Sequence[PlacedHook] = ()
    points: Mapping[str, HookPoint] = field(default_factory=dict)
    fired: dict[str, Array] = field(default_factory=dict)
    read: dict[str, Array] = field(default_factory=dict)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the host.

        Raises:
            ArtifactError: The folder does not have the stages.
            InputError: A function returned something that is not an array of the tensor's shape and dtype.
        """
        hooks = self.manifest.all_hooks
        last = len(hooks)
        if stage(last) not in self.graphs:
            raise ArtifactError(
                "This folder does not have the stages of the host, between which hook functions run. Graft the SAEs "
                "again with the mode splice."
            )
        tensors, tokens = dict(feeds), np.ones(tokens_of(feeds), bool)
        for i, hook in enumerate(hooks):
            if stage(i) in self.graphs:
                tensors |= self.graphs.run(stage(i), tensors)
            else:
                tensors[hook] = tensors[hooks[i - 1]]
            tensors[hook] = self._at_hook(hook, tensors[hook], tokens)
        tensors |= self.graphs.run(stage(last), tensors)
        return {tensor.name: tensors[tensor.name] for tensor in self.manifest.host.outputs}

    def _at_hook(self, name: str, x: Array, tokens: Array) -> Array:
        """Return what the host goes on from: what the attached SAE or the functions at the hook made of `x`."""
        sae = self.manifest.replacing(name)
        if sae is not None and sae.hook in self.setup.attached:
            return self._through_sae(sae, x, self.setup.attached[sae.hook], tokens)
        for hook in self.placed:
            if hook.name == name and (returned := call_hook(hook, x, self.points[name])) is not None:
                check_returned(array := as_given(returned), x, name)
                x = np.asarray(array)
        self.fired[name] = self.read[name] = x
        return x

    def _through_sae(self, sae: GraftedSAE, replaced: Array, use_error_term: bool, tokens: Array) -> Array:
        graphs = self.sae_graphs(sae.hook)
        cfg = graphs.manifest.sae
        x = replaced if sae.target is None else self.read[sae.hook]
        for hook, tensor in ((sae.hook, x), (sae.replaced, replaced)) if cfg.takes_target else ((sae.hook, x),):
            warn_of_overflow(hook, cfg.dtype, tokens_too_large(tensor, cfg.dtype, tokens), tokens)
        if sae.heads:  # the SAE may have been trained on a hook of another name, and its name decides about heads
            cfg = dataclasses.replace(cfg, hook_name=HEADS)
        names = [name for name in HOOK_NAMES if name != HOOK_ERROR or use_error_term]
        placed = [
            PlacedHook(name, hook.function, hook.order, None)
            for hook in self.placed
            for name in names
            if hook.name == at(sae.hook, name)
        ]
        if (intervention := self.setup.edits.get(sae.hook)) is not None:
            placed.insert(0, PlacedHook(HOOK_ACTS_POST, SteeringHook(intervention), 0, None))
        points = {name: self.points.get(at(sae.hook, name), HookPoint(at(sae.hook, name))) for name in names}
        target = _as_read(replaced, cfg.dtype) if cfg.takes_target else None
        batch = Batch.of(_as_read(x, cfg.dtype), cfg, target)
        tensors = forward(graphs, batch, names, placed, points, use_error_term)
        self.fired.update({at(sae.hook, name): np.asarray(tensors[name]) for name in names})
        return self.fired[at(sae.hook, HOOK_OUTPUT)].astype(replaced.dtype, copy=False)


def _as_read(x: Array, dtype: str) -> Array:
    """Return a tensor of the host as an SAE takes it: an SAE in half precision takes that of another dtype rounded."""
    with np.errstate(over="ignore"):  # `warn_of_overflow` says which tokens
        return x if dtype == FLOAT32 else feed_of(x, dtype)
