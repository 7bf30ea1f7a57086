"""Engine: the graphs of an artifact on one device; which one answers a request, in which blocks."""

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from ..arrays.tensor import TensorValue
from ..artifact.contracts import FEATURES, STEER
from ..artifact.folder import Artifact, read_artifact
from ..artifact.manifest import SAEConfig
from ..artifact.names import FEATURE_HOOKS, HOOK_ACTS_POST, HOOK_INPUT, INDICES, L0, VALUES, K
from ..devices.blocks import block_sizes
from ..devices.capabilities import choose_block_tokens, choose_device
from ..devices.options import Options
from ..devices.start import CPU
from ..devices.threads import thread_limit
from ..errors import InputError
from .batch import Batch
from .features import TopFeatures
from .graphs import Graphs
from .interventions import Intervention
from .route import Plan

_Opened = TypeVar("_Opened", bound="Engine")


class Engine:
    """What `SAESession` stands on: any hooks of a batch, by the graph that fits best.

    Attributes:
        artifact: what was opened.
        device: what runs it, "cpu" or "cuda:N".
    """

    def __init__(self, path: str | os.PathLike[str], device: str, options: Options) -> None:
        self.artifact: Artifact = read_artifact(path)
        found = choose_device(self.artifact, device, options)
        self.device: str = found.name
        self._options = options
        for_cpu = options.graphs == "cpu" or (options.graphs == "auto" and found.kind == CPU)
        self._graphs = Graphs(
            self.artifact, found, options, for_cpu, choose_block_tokens(self.artifact, found, options)
        )

    @property
    def cfg(self) -> SAEConfig:
        """The configuration of the SAE, as the manifest has it."""
        return self.artifact.manifest.sae

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The six hooks in firing order; `cfg.fired_hooks` has those that `run_with_cache` returns.

        Of a transcoder without the error term they are five: without a target there is no error.
        """
        return self.cfg.hooks

    def compute(self, x: Any, names: Sequence[str], target: Any = None) -> dict[str, TensorValue]:
        """Return the named hooks of `x`, in that order, by the smallest graph that has them all.

        Unlike the cache, it has `hook_sae_error` also where that does not fire in the original.

        Args:
            x: as for `__call__`.
            names: among `hook_names`.
            target: as for `__call__`.

        Raises:
            InputError: `x` or `target` has another shape or dtype, or a name is not a hook.
        """
        return self._compute(x, self._known(names), target)

    def top_features(self, x: Any, k: int) -> TopFeatures:
        """Return the k strongest features of each token: indices and values `(..., k)`, and how many are on `(...)`.

        A service that only needs these moves k numbers per token instead of `d_sae`. Where `lossless` holds, they are
        all that `encode` would have given.

        Args:
            x: as for `__call__`.
            k: from 1 to d_sae.

        Raises:
            InputError: `x` has another shape or dtype, or k is out of range.
        """
        if not 1 <= k <= self.cfg.d_sae:
            raise InputError(f"k is {k}; it must be from 1 to d_sae = {self.cfg.d_sae}.")
        batch = self._batch(x)
        found = self.run_graph(self._graphs.fitting(FEATURES), batch.feeds() | {K: np.array([k], np.int64)})
        indices, values = (found[name].reshape(*batch.lead, k) for name in (INDICES, VALUES))
        return TopFeatures(indices, values, found[L0].reshape(batch.lead))

    def explain(self, names: Sequence[str] | None = None, tokens: int = 1, *, steered: bool = False) -> Plan:
        """Return how a request would be carried out, and why; print it.

        Args:
            names: the hooks that are asked for, all without; `sae(x)` asks for `hook_sae_output`.
            tokens: of the batch.
            steered: whether an intervention is carried out.

        Raises:
            InputError: a name is not a hook.
        """
        graph, why = self._choice(self._known(self.hook_names if names is None else names), steered)
        threads = self._options.threads or thread_limit()
        if graph is not None and tokens in self._options.cuda_graph:
            why += " Its launches are captured at the first call and replayed."
        return Plan(graph, self.device, threads, tuple(block_sizes(tokens, self._graphs.block_tokens)), why)

    def run_graph(
        self, graph: str, feeds: Mapping[str, TensorValue], names: Sequence[str] | None = None
    ) -> dict[str, TensorValue]:
        """Run one graph of the artifact as it is, a large batch in blocks, and return its outputs.

        Args:
            graph: its name in the manifest, such as "model".
            feeds: an array for each of its inputs, with the rank and dtype that the manifest gives.
            names: which of its outputs; None for all that it has, in its order.

        Raises:
            ArtifactError: the artifact has no such graph, or it cannot be loaded.
            SAEError: ONNX Runtime refuses the feeds, or runs out of memory.
        """
        return self._graphs.run(graph, feeds, names)

    def release(self, graph: str) -> None:
        """Free one graph's copy of the weights; a later call loads it again."""
        self._graphs.release(graph)

    def close(self) -> None:
        """Free the graphs and their weights; a call after this one is an error. Closing twice is not."""
        self._graphs.close()

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        cfg = self.cfg
        return f"SAESession({str(self.artifact.path)!r}, {cfg.hook_name}, {cfg.d_in} -> {cfg.d_sae}, {self.device})"

    def _batch(self, x: Any, target: Any = None) -> Batch:
        """Return what a caller gave, where it is."""
        return Batch.of(x, self.cfg, target, self._graphs.backend.import_array)

    def _known(self, names: Sequence[str]) -> Sequence[str]:
        if unknown := [name for name in names if name not in self.hook_names]:
            raise InputError(f"{', '.join(unknown)}: no such hook. There are {', '.join(self.hook_names)}.")
        return names

    def _choice(self, names: Sequence[str], steered: bool, in_numpy: bool = True) -> tuple[str | None, str]:
        """Return the graph that computes hooks, or None if nothing has to be computed, and why it is that one."""
        computed = [name for name in names if name != HOOK_INPUT]
        if not computed:
            return None, "hook_sae_input is what was given."
        if steered and not (set(computed) <= set(FEATURE_HOOKS) and in_numpy):
            graph, why = self._graphs.fitting(STEER), "it carries out interventions"
        else:
            graph, why = self._graphs.smallest(computed), f"it has {', '.join(computed)} and as little else as possible"
        family = "written for the CPU" if self._graphs.for_cpu else "portable"
        asked = self._options.graphs
        because = f'graphs="{asked}"' + (f" on {self.device}" if asked == "auto" else "")
        return graph, f"{why}; graphs that are {family} are preferred ({because})."

    def _compute(
        self, x: Any, names: Sequence[str], target: Any, intervention: Intervention | None = None
    ) -> dict[str, TensorValue]:
        """Return the named hooks, in that order, by one graph."""
        batch = self._batch(x, target)
        if intervention is not None and not len(intervention.ids):
            intervention = None
        hooks: dict[str, TensorValue] = {HOOK_INPUT: batch.given}  # as given: in the original too it keeps its dtype
        computed = [name for name in dict.fromkeys(names) if name != HOOK_INPUT]
        feeds = batch.feeds()
        in_numpy = isinstance(batch.given, np.ndarray)  # then the features can be edited here, and need no decoder
        graph, _ = self._choice(names, intervention is not None, in_numpy)
        in_graph = graph == self._graphs.fitting(STEER)
        if intervention is not None and in_graph:
            feeds |= intervention.feeds(batch.lead, self.cfg.dtype)
        if graph is not None:
            hooks |= self.run_graph(graph, feeds, computed)
        tensors = {name: batch.shaped(name, hooks[name]) for name in names}
        acts_post = tensors.get(HOOK_ACTS_POST)
        if intervention is not None and not in_graph and isinstance(acts_post, np.ndarray):
            tensors[HOOK_ACTS_POST] = intervention(acts_post)
        return tensors
