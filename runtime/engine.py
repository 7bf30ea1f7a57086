"""Engine: the graphs of an artifact on one device; which one answers a request, in which blocks."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import numpy as np

from .artifact import Artifact, read_artifact
from .blocks import block_sizes, default_block
from .contracts import FEATURES, STEER
from .errors import InputError, ProviderError
from .features import TopFeatures
from .graphs import Graphs
from .inputs import Array, Batch
from .interventions import Intervention
from .manifest import FLOAT32, SAEConfig
from .names import FEATURE_HOOKS, HOOK_ACTS_POST, HOOK_INPUT, INDICES, L0, VALUES, K
from .plan import Plan
from .providers import Settings, fewer_threads, find_device

FAMILIES = ("auto", "cpu", "portable")

_Opened = TypeVar("_Opened", bound="Engine")


class Engine:
    """What `SAESession` stands on: any hooks of a batch, by the graph that fits best.

    Attributes:
        artifact: what was opened.
        device: what runs it, "cpu" or "cuda:N".
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        *,
        graphs: str = "auto",
        threads: int | None = None,
        arena: bool = True,
        block_tokens: int | None = None,
        check_integrity: bool = True,
    ) -> None:
        if graphs not in FAMILIES:
            raise InputError(f"graphs is {graphs!r}; it must be one of {', '.join(map(repr, FAMILIES))}.")
        if block_tokens is not None and block_tokens < 1:
            raise InputError(f"block_tokens is {block_tokens}; it must be at least 1.")
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1, or None for one per core.")
        self.artifact: Artifact = read_artifact(path)
        if self.artifact.manifest.weights_dtype != FLOAT32:
            if device not in ("auto", "cpu"):
                raise ProviderError(f"{device} was asked for, but {path} has int8 weights, which run on a CPU only.")
            device = "cpu"
        found = find_device(device)
        self.device: str = found.name
        self._threads = threads or fewer_threads()
        self._family = graphs
        self._graphs = Graphs(
            self.artifact,
            found,
            Settings(threads, arena),
            check_integrity,
            for_cpu=graphs == "cpu" or (graphs == "auto" and self.device == "cpu"),
            block_tokens=block_tokens or default_block(self.cfg),
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

    def compute(self, x: Array, names: Sequence[str], target: Array | None = None) -> dict[str, Array]:
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

    def top_features(self, x: Array, k: int) -> TopFeatures:
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
        batch = Batch.of(x, self.cfg)
        found = self.run_graph(FEATURES, batch.feeds() | {K: np.array([k], np.int64)})
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
        return Plan(graph, self.device, self._threads, tuple(block_sizes(tokens, self._graphs.block_tokens)), why)

    def run_graph(self, graph: str, feeds: dict[str, Array], names: Sequence[str] | None = None) -> dict[str, Array]:
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

    def _known(self, names: Sequence[str]) -> Sequence[str]:
        if unknown := [name for name in names if name not in self.hook_names]:
            raise InputError(f"{', '.join(unknown)}: no such hook. There are {', '.join(self.hook_names)}.")
        return names

    def _choice(self, names: Sequence[str], steered: bool) -> tuple[str | None, str]:
        """Return the graph that computes hooks, or None if nothing has to be computed, and why it is that one."""
        computed = [name for name in names if name != HOOK_INPUT]
        if not computed:
            return None, "hook_sae_input is what was given."
        if steered and not set(computed) <= set(FEATURE_HOOKS):
            graph, why = self._graphs.fitting(STEER), "it carries out interventions"
        else:
            graph, why = self._graphs.smallest(computed), f"it has {', '.join(computed)} and as little else as possible"
        family = "written for the CPU" if self._graphs.for_cpu else "portable"
        because = f'graphs="{self._family}"' + (f" on {self.device}" if self._family == "auto" else "")
        return graph, f"{why}; graphs that are {family} are preferred ({because})."

    def _compute(
        self, x: Array, names: Sequence[str], target: Array | None, intervention: Intervention | None = None
    ) -> dict[str, Array]:
        """Return the named hooks, in that order, by one graph."""
        batch = Batch.of(x, self.cfg, target)
        hooks = {HOOK_INPUT: batch.given}  # as given: in the original too it keeps its dtype
        computed = [name for name in dict.fromkeys(names) if name != HOOK_INPUT]
        feeds = batch.feeds()
        graph, _ = self._choice(names, steered=intervention is not None)
        in_graph = graph == self._graphs.fitting(STEER)
        if intervention is not None and in_graph:
            feeds |= intervention.feeds(batch.lead, self.cfg.dtype)
        if graph is not None:
            hooks |= self.run_graph(graph, feeds, computed)
        tensors = {name: hooks[name].reshape(batch.shape(name)) for name in names}
        if intervention is not None and HOOK_ACTS_POST in names and not in_graph:
            tensors[HOOK_ACTS_POST] = intervention(tensors[HOOK_ACTS_POST])  # the features need no decoder
        return tensors
