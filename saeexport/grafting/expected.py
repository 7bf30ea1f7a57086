"""What a grafted host must compute: the outputs of the host, with and without the PyTorch SAEs in it, and their errors.

The own error of the host says how much rounding matters: it is the distance of the host from PyTorch, or where there is
no PyTorch model, from itself without ONNX Runtime's optimisations.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from runtime.arrays.dtypes import is_float, widened
from runtime.arrays.tensor import Array
from runtime.artifact.budgets import MOST_OWN_ERROR
from runtime.artifact.manifest import GraphSpec
from runtime.errors import GraftError
from runtime.hosts.feeds import is_token
from runtime.hosts.overflow import LARGEST, tokens_too_large
from runtime.hosts.rule import host_error
from runtime.session.interventions import Intervention

from ..checkpoints.registry import load
from .build import build_probe
from .given import Given
from .grafts import Graft
from .host import Host, coarsest_dtype
from .order import HookInHost, in_order
from .reference import run, run_spliced
from .running import Graph, reconstruct, run_stages
from .write import write_graph

WITH_SAES = "PyTorch does, with the PyTorch SAEs in both"
WITHOUT_OPTIMISATIONS = "it does without ONNX Runtime's optimisations"


class Expected:
    """What a grafted host must compute from the feeds.

    Attributes:
        feeds: Inputs of the host.
        mask: Which positions are not padding, `(batch, positions)` bool.
        hooks: The hooks that SAEs read and replace, in the order of the host.
        outputs: Names of the host's outputs, without those of the cache.
        dtype: The dtype of the host's values that rounds most. A host in half precision may have float32 outputs.
        sae_dtype: The dtype of the SAEs that rounds most.
    """

    def __init__(
        self, folder: Path, host: Host, grafts: Sequence[Graft], graphs: Mapping[str, GraphSpec], given: Given
    ) -> None:
        """Load the PyTorch SAEs.

        Args:
            folder: Folder with the graphs and the SAEs.
            host: The host.
            grafts: The SAEs, in the order of the host.
            graphs: Specs of the graphs by name.
            given: What the host is compared with.
        """
        self._folder, self._host, self._grafts, self._graphs, self._given = folder, host, grafts, graphs, given
        self.dtype = host.dtype
        self.sae_dtype = coarsest_dtype({graft.sae.dtype for graft in grafts})
        self._saes = {graft.hook: load(graft.artifact.folder) for graft in grafts}
        self.feeds = dict(given.reference.feeds)
        self.mask: Array = is_token(self.feeds)
        self.hooks = in_order(host.values(), grafts)
        present = {name for _, name in host.cache}
        self.outputs = [str(value.name) for value in host.graph.outputs if value.name not in present]

    def ungrafted(self, optimize: bool = True) -> Graph:
        """Load the host without SAEs: its file, or where it computes in another dtype now, its graph."""
        if not self._host.is_widened:
            return Graph(self._host.path, optimize)
        return self._loaded(self._host.graph.clone(), optimize)

    def noise(self, own: Mapping[str, Array]) -> dict[str, float]:
        """Return the own error of the host at each output, from what it is compared with.

        Raises:
            GraftError: It is too large to be one of rounding.
        """
        others = [(WITHOUT_OPTIMISATIONS, self.ungrafted(optimize=False)(self.feeds))]
        if self._given.model is not None:
            others.append(("the model in PyTorch", self._named(run(self._given.model, self.feeds), own)))
        if self._given.outputs:
            others.append(("the outputs in the file", dict(self._given.outputs)))
        noise = dict.fromkeys(self.outputs, 0.0)
        for what, outputs in others:
            for name in self.outputs:
                if name in outputs:
                    noise[name] = max(noise[name], self._own_error(name, own[name], outputs[name], what))
        return noise

    def activations_at_hooks(self) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the tensor at each hook in the ungrafted host, and the own error of the host there."""
        found, slow = (
            self._loaded(build_probe(self._host.model, self._grafts), optimize)(self.feeds)
            for optimize in (True, False)
        )
        activations, own = {}, {}
        for hook in self.hooks:
            x = activations[hook.name] = found[hook.value]
            self._check_range(hook, x, self.mask)
            own[hook.name] = self._own_error(hook.value, x, slow[hook.value], WITHOUT_OPTIMISATIONS)
            expected = self._given.reference.activations.get(hook.name)
            if expected is not None:
                what = f"what it is compared with at {hook.name}"
                own[hook.name] = max(own[hook.name], self._own_error(hook.value, x, expected.reshape(x.shape), what))
        return activations, own

    def spliced(
        self, edits: Mapping[str, Intervention], noise: Mapping[str, float]
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the outputs with the PyTorch SAEs in the host, and the own errors of the host with them in it."""
        staged = self.staged(edits)
        if self._given.model is None:
            reference, other = staged, self.staged(edits, optimize=False)
        else:
            targets = {graft.hook: graft.target.hook for graft in self._grafts if graft.target is not None}
            run_in_torch = run_spliced(self._given.model, self.feeds, self._saes, False, edits, targets)
            reference = staged | self._named(run_in_torch, staged)
            other = staged
        own = {
            name: max(
                noise[name],
                self._own_error(
                    name,
                    other[name],
                    reference[name],
                    WITH_SAES,
                    coarsest_dtype({self._host.exported_dtype, self.sae_dtype}),
                ),
            )
            for name in self.outputs
        }
        return {name: reference[name] for name in self.outputs}, own

    def staged(
        self, edits: Mapping[str, Intervention], acts: "dict[str, Array] | None" = None, optimize: bool = True
    ) -> dict[str, Array]:
        """Return the tensors of the stages with the PyTorch SAEs between them, without their error terms."""
        hooks, read = {hook.name: hook for hook in self.hooks}, dict[str, Array]()

        def replace(name: str, x: Array) -> Array:
            graft = hooks[name].graft
            # What is not finite at a masked position reaches the other tokens: 0 times NaN is NaN.
            self._check_range(hooks[name], x, np.ones_like(self.mask))
            if not hooks[name].is_replaced:
                read[name] = x
                return x
            target = None if graft.target is None else x
            made = reconstruct(graft, self._saes[graft.hook], read.get(graft.hook, x), edits.get(graft.hook), target)
            self._check_finite(f"What the SAE {graft.artifact.path} computes at {graft.hook}", made.recons)
            if acts is not None:
                acts[graft.hook] = made.acts_post
            return made.recons

        return run_stages(self._folder, self._graphs, list(hooks), self.feeds, replace, optimize)

    def _loaded(self, graph: ir.Graph, optimize: bool) -> Graph:
        """Load a graph that is not part of the folder, and has its weights there."""
        file = self._folder / "unnamed.onnx"
        try:
            write_graph(graph, self._host.model, file, "")
            return Graph(file, optimize)
        finally:
            file.unlink(missing_ok=True)

    def _check_range(self, hook: HookInHost, x: Array, tokens: Array) -> None:
        """Refuse an SAE whose dtype does not hold the activations of some tokens.

        Raises:
            GraftError: A value that it reads would become infinite.
        """
        sae = hook.graft.sae
        if hook.name != hook.graft.hook and not sae.takes_target:
            return
        if count := tokens_too_large(x, sae.dtype, tokens):
            raise GraftError(
                f"{hook.name}: the SAE {hook.graft.artifact.path} is in {sae.dtype}, which ends at "
                f"{LARGEST[sae.dtype]:.0f}, and the activations of {count} of {int(tokens.sum())} tokens are larger. "
                "Export the SAE in bfloat16 or float32, and graft that."
            )

    def _check_finite(self, what: str, y: Array) -> None:
        """Refuse a tensor with values that are not finite, which cannot be compared.

        Raises:
            GraftError: A token that is not masked has such a value.
        """
        if y.shape[: self.mask.ndim] != self.mask.shape or not is_float(y.dtype):
            return
        rows = widened(y)[self.mask].reshape(int(self.mask.sum()), -1)
        if count := int((~np.isfinite(rows).all(axis=1)).sum()):
            raise GraftError(
                f"{what} is not finite for {count} of {len(rows)} tokens, so that nothing can be compared. If it is in "
                "float16, which ends at 65504, export it in bfloat16 or float32."
            )

    def _own_error(self, name: str, y: Array, other: Array, what: str, dtype: str | None = None) -> float:
        """Return the error of an output of the host, after checking that rounding explains it."""
        self._check_finite(f"The output or activation {name} of the host {self._host.path}", y)
        error = host_error(y, other, self.mask)
        most = MOST_OWN_ERROR[dtype or self._host.exported_dtype]
        if not error <= most:
            raise GraftError(
                f"The host {self._host.path} computes something else than {what}: {name} is off by {error:.1e} of a "
                f"token's norm, and rounding explains at most {most:.1e}. Compare it with the model that it was "
                "exported from."
            )
        return error

    def _named(self, outputs: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of the PyTorch model by the names of the host's outputs: the nearest of the same shape."""
        found = {}
        for name in self.outputs:
            fitting = [y for y in outputs.values() if y.shape == own[name].shape]
            if name in outputs:
                found[name] = outputs[name]
            elif fitting:
                found[name] = min(fitting, key=lambda y: host_error(own[name], y, self.mask))
        if not found:
            raise GraftError(
                f"The model in PyTorch gives {', '.join(outputs)}, and the host {', '.join(self.outputs)}: no output "
                "has the same name or shape, so that nothing can be compared. Use the model that the host was exported "
                "from."
            )
        return found
