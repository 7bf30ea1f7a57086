"""Runs a grafted host with a given setup of SAEs and edits: as one graph, in stages, or up to the last hook."""

import os
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from ..arrays.tensor import Array
from ..artifact.names import FEATURE_HOOKS, HOOK_ACTS_POST, HOOK_ERROR, HOOK_INPUT, HOOK_NAMES
from ..devices.options import Options
from ..errors import ArtifactError, IntegrityError
from ..session.graphs import Graphs
from ..session.hooks import FwdHooks, HookPoint, PlacedHook, checked_pairs, names_for
from ..session.session import SAESession
from .attaching import Setup
from .feeds import is_token, tokens_of
from .folder import GraftedHost
from .graphs import HostGraphs, choose_device, open_host
from .manifest import GraftedSAE
from .names import ATTACH, FEATURES, SPLICE, TAP, USE_ERROR_TERM, activation_name, at
from .overflow import narrow_reads, tokens_too_large, warn_of_overflow
from .stages import StagedPass


class HostRunner:
    """A grafted host on one device. Calls from several threads at once are safe.

    Attributes:
        host: The folder that was opened.
        device: Name of the device.
        graphs: The graphs of the host.
        outputs: Names of the outputs of the host.

    Args:
        path: Folder of the grafted host.
        device: As for `HostSession`.
        options: Options, of which hosts have `threads` and `check_integrity`.
        public_key: As for `HostSession`.

    Raises:
        ArtifactError: As for `HostSession`, as is `ProviderError`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        options: Options | None = None,
        public_key: str | os.PathLike[str] | None = None,
    ) -> None:
        self._options = options or Options()
        host, files = open_host(path, self._options.check_integrity, public_key)
        try:
            found = choose_device(host, device)
        except BaseException:
            files.close()
            raise
        self.host: GraftedHost = host
        self.device: str = found.name
        self.graphs = HostGraphs(host, files, found, self._options)
        self.outputs = [tensor.name for tensor in host.manifest.host.outputs]
        names = [*host.manifest.all_hooks, *(at(hook, name) for hook in host.saes for name in HOOK_NAMES)]
        self._points = {name: HookPoint(name) for name in names}
        self._narrow = {sae.hook: narrow_reads(sae, host.saes[sae.hook]) for sae in host.manifest.saes}
        self._saes: dict[str, SAESession] = {}
        self._lock = threading.Lock()

    def sae(self, hook: str) -> SAESession:
        """Return the session of the SAE at a hook; it is closed with this runner.

        Raises:
            IntegrityError: The folder holds another SAE now than when the host was opened.
        """
        self.graphs.check_open()
        with self._lock:
            if hook not in self._saes:
                grafted, options = self.host.saes[hook], self._options
                session = SAESession(
                    grafted.folder, self.device, threads=options.threads, check_integrity=options.check_integrity
                )
                if session.artifact.sha256 != grafted.sha256:
                    session.close()
                    raise IntegrityError(
                        f"{grafted.folder} holds another SAE now than when the host was opened. Open the host again."
                    )
                self._saes[hook] = session
            return self._saes[hook]

    def close(self) -> None:
        """Free the graphs, their weights and the open files; closing twice does no harm."""
        with self._lock:
            for sae in self._saes.values():
                sae.close()
            self._saes.clear()
        self.graphs.close()

    def run(self, feeds: Mapping[str, Array], setup: Setup, names: Sequence[str]) -> dict[str, Array]:
        """Return outputs of a graph of the whole host, the splice or else the tap, with a setup.

        Raises:
            ArtifactError: The folder does not have such a graph.
            SAEError: ONNX Runtime refuses the feeds.
        """
        graph = self._whole_graph()
        switches = self._switches(feeds, setup) if graph == SPLICE else {}
        read = self._narrow_reads(setup, names)
        tensors = self.graphs.run(
            graph, {**feeds, **switches}, list(dict.fromkeys([*names, *(output for _, output, *_ in read)]))
        )
        for hook, output, dtype, attached in read:
            # What is not finite at a masked position of a spliced host reaches the other tokens: 0 times NaN is NaN.
            tokens = np.ones(tokens_of(feeds), bool) if attached else is_token(feeds)
            warn_of_overflow(hook, dtype, tokens_too_large(tensors[output], dtype, tokens), tokens)
        return {name: tensors[name] for name in names}

    def run_in_stages(
        self, feeds: Mapping[str, Array], setup: Setup, placed: Sequence[PlacedHook] = ()
    ) -> dict[str, Array]:
        """Return the outputs of the host in stages, with a setup and hook functions between the stages.

        Raises:
            ArtifactError: The folder does not have the stages.
            InputError: A function returned an array of another shape or dtype.
        """
        staged = StagedPass(self.host.manifest, self.graphs, self._sae_graphs, setup, placed, self._points)
        return staged.run(feeds)

    def features(self, feeds: Mapping[str, Array], setup: Setup, hooks: Sequence[str]) -> dict[str, Array]:
        """Return the activations of the features at some hooks, 0 at masked positions."""
        names = [at(hook, HOOK_ACTS_POST) for hook in hooks]
        tokens, acts = is_token(feeds), {}
        masked = ~tokens
        if setup.attached or setup.edits or FEATURES not in self.graphs:
            tensors = self.run(feeds, setup, names)
        else:
            tensors = self.graphs.run(FEATURES, feeds, names)
            for hook, name in zip(hooks, names, strict=True):
                if self._narrow[hook]:  # this graph does not give out what the SAE reads
                    not_finite = int((~np.isfinite(tensors[name][tokens]).all(axis=-1)).sum())
                    warn_of_overflow(hook, tensors[name].dtype.name, not_finite, tokens)
        for hook, name in zip(hooks, names, strict=True):
            array = tensors[name]
            if masked.any() and array.shape[: masked.ndim] == masked.shape:
                array[masked] = 0
            acts[hook] = array
        return acts

    def cached(self, setup: Setup) -> dict[str, str]:
        """Return the names of the cache, in firing order, with the outputs of the graph that hold them."""
        graph = self._whole_graph()
        outputs = {tensor.name for tensor in self.graphs.spec(graph).outputs}
        sources: dict[str, str] = {}
        for name, sae in self._places():
            if not _is_attached(name, sae, setup):
                sources[name] = activation_name(sae.hook, name)
                continue
            names = (hook for hook in HOOK_NAMES if hook != HOOK_ERROR or setup.attached[sae.hook])
            sources.update({at(sae.hook, hook): at(sae.hook, hook) for hook in names})
        return {name: source for name, source in sources.items() if source in outputs}

    def with_heads(self, name: str, tensor: Array) -> Array:
        """Return a tensor of a graph with the heads of the host's value, which the SAE's graph may have flattened."""
        for sae in self.host.manifest.saes:
            own = name.startswith(f"{sae.hook}.") and not name.endswith(FEATURE_HOOKS)
            own = own and (sae.target is None or name == at(sae.hook, HOOK_INPUT))
            if own and sae.heads and tensor.ndim < len(sae.shape):
                return tensor.reshape(*tensor.shape[:-1], *sae.shape[-2:])
        return tensor

    def place(self, fwd_hooks: FwdHooks, setup: Setup) -> list[PlacedHook]:
        """Return the functions at the names that fire in a pass.

        Raises:
            UnknownHookError: A name does not fire.
        """
        known: list[str] = []
        for name, sae in self._places():
            fired = [at(sae.hook, hook) for hook in HOOK_NAMES if hook != HOOK_ERROR or setup.attached.get(sae.hook)]
            known += fired if _is_attached(name, sae, setup) else [name]
        placed = []
        for order, (where, function) in enumerate(checked_pairs(fwd_hooks)):
            names = names_for(function, where, known, "no such hook fires")
            placed += [PlacedHook(name, function, order + 1, None) for name in names]
        return placed

    def _places(self) -> list[tuple[str, GraftedSAE]]:
        """Return every hook that an SAE reads or replaces, with the SAE, in the order of the graph."""
        saes = {hook: sae for sae in self.host.manifest.saes for hook in (sae.hook, sae.replaced)}
        return [(hook, saes[hook]) for hook in self.host.manifest.all_hooks]

    def _whole_graph(self) -> str:
        """Return the graph of a pass of the whole host.

        One graph serves every call, with SAEs and without, so that the weights are in memory once.

        Raises:
            ArtifactError: The folder does not have such a graph.
        """
        for graph in (SPLICE, TAP):
            if graph in self.graphs:
                return graph
        raise ArtifactError(
            f"{self.host.path} has the graphs {', '.join(self.host.manifest.graphs)}, none of which computes the "
            "outputs of the host. Call encode or top_features, or graft the SAEs again with the mode tap or splice."
        )

    def _narrow_reads(self, setup: Setup, names: Sequence[str]) -> list[tuple[str, str, str, bool]]:
        """Return what SAEs in a dtype of a smaller range than the host's read in a pass.

        Each is a hook, the output that holds the activation there, the dtype, and whether the SAE is attached. An SAE
        that is not attached counts if a tensor that it computes is asked for.
        """
        found = []
        for sae, reads in self._narrow.items():
            computed = {at(sae, name) for name in HOOK_NAMES if name != HOOK_INPUT}
            if reads and (sae in setup.attached or not computed.isdisjoint(names)):
                dtype = self.host.saes[sae].manifest.sae.dtype
                found += [(hook, output, dtype, sae in setup.attached) for hook, output in reads]
        return found

    def _switches(self, feeds: Mapping[str, Array], setup: Setup) -> dict[str, Array]:
        """Return the inputs of the splice that attach SAEs and edit features."""
        given: dict[str, Array] = {}
        for hook, sae in self.host.saes.items():
            given[at(hook, ATTACH)] = np.array(hook in setup.attached)
            # Off where no SAE is attached: an SAE that is attached nevertheless would hide behind its error term.
            given[at(hook, USE_ERROR_TERM)] = np.array(setup.attached.get(hook, False))
            if hook in setup.edits:
                edits = setup.edits[hook].feeds(tokens_of(feeds), sae.manifest.sae.dtype)
                given.update({at(hook, name): np.asarray(array) for name, array in edits.items()})
        return given

    def _sae_graphs(self, hook: str) -> Graphs:
        return self.sae(hook)._graphs


def _is_attached(hook: str, sae: GraftedSAE, setup: Setup) -> bool:
    """Tell whether the output of an attached SAE replaces the activation at a hook."""
    return hook == sae.replaced and sae.hook in setup.attached
