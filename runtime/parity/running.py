"""Runs the graphs of an artifact for a proof: in several calls, and each loaded as rarely as the memory allows."""

import functools
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from ..arrays.dtypes import widened
from ..arrays.tensor import TensorValue
from ..artifact.contracts import ACTIVATE, FEATURES, contracts_of
from ..artifact.manifest import GraphSpec
from ..artifact.names import INDICES, INPUT, L0, VALUES, K
from ..devices.blocks import is_per_token, slice_feeds
from ..devices.cuda.folding import FEWEST_TOKENS
from ..devices.start import CUDA
from ..session.session import SAESession
from .reference import Hooks

SERVICE_BATCH = 8
"""Tokens per call of a service that answers single requests."""


class KeptGraphs:
    """Decides which graphs stay loaded: the one that ran last, and `activate`, with which the others are compared.

    Loading a graph takes longer than running it, and a graph is run several times. Two whole graphs at once would
    hold the weights twice; `activate` holds no matrix, except for the encoder of a gated SAE.

    Args:
        release: Frees a graph by its name.
    """

    def __init__(self, release: Callable[[str], None]) -> None:
        self._release = release
        self._kept: dict[str, str] = {}

    def make_room(self, graph: str) -> None:
        """Release the graph in whose place another one is about to be loaded."""
        kind = graph.partition(".")[0]
        place = kind if kind == ACTIVATE else ""
        if (kept := self._kept.get(place)) not in (None, graph):
            self._release(str(kept))
        self._kept[place] = graph


class SessionRunner:
    """Runs graphs of a session as `runtime.parity.proof.Run` does.

    Args:
        session: The session, which stays open.
    """

    def __init__(self, session: SAESession) -> None:
        self._session = session
        self._kept = KeptGraphs(session.release)

    def __call__(self, graph: str, feeds: dict[str, TensorValue], tokens: int) -> Hooks:
        """Run a graph on all tokens; see `run_in_calls`."""
        self._kept.make_room(graph)
        session = self._session
        for_cpu = contracts_of(session.cfg.dtype)[graph].for_cpu
        on_cuda = session.device.startswith(CUDA)
        # On CUDA, another graph finds the strongest features of many tokens.
        run = self._find_strongest if on_cuda and graph == FEATURES else functools.partial(session.run_graph, graph)
        large = FEWEST_TOKENS if on_cuda else 0
        return run_in_calls(run, session.artifact.manifest.graphs[graph], feeds, tokens, for_cpu, large)

    def _find_strongest(self, feeds: Mapping[str, TensorValue]) -> dict[str, TensorValue]:
        """Return the outputs of `features`, as `top_features` finds them.

        `encode` stays loaded beside `features`. On a GPU, graphs share the weights if ONNX Runtime can.
        """
        indices, values, l0 = self._session.top_features(feeds[INPUT], int(np.asarray(feeds[K])[0]))
        return {INDICES: indices, VALUES: values, L0: l0}


def run_in_calls(
    run: Callable[[dict[str, TensorValue]], Mapping[str, TensorValue]],
    spec: GraphSpec,
    feeds: dict[str, TensorValue],
    tokens: int,
    for_cpu: bool = False,
    large: int = 0,
) -> Hooks:
    """Run a graph on all tokens in several calls; the last call has a single token.

    What a graph computes may depend on the number of tokens, and a service calls it with many and with few. A CPU
    variant also runs in batches of `SERVICE_BATCH`. A graph on CUDA has a session for large batches and one for others:
    each runs about half of the tokens.

    Args:
        run: Runs the graph: `run(feeds)` returns its outputs by name.
        spec: Inputs of the graph.
        feeds: Inputs for all tokens.
        tokens: Number of all tokens.
        for_cpu: Whether the graph is a CPU variant.
        large: Smallest size of a large batch, for which the first half of the tokens is repeated if need be; the other
            half runs in smaller ones. 0 for no large batch.
    """
    half = tokens // 2
    small = SERVICE_BATCH if for_cpu else large - 1
    steps = range(half, tokens - 1, small) if for_cpu or large else []
    parts = []
    for start, end in itertools.pairwise([0, *steps, tokens - 1, tokens]):
        if end > start:
            part = slice_feeds(spec, feeds, tokens, slice(start, end))
            if start == 0 and end < min(large, tokens):
                part = _repeat_tokens(spec, part, end, large)
            # What repeated tokens gave comes after the first `end` rows.
            parts.append({name: widened(np.asarray(found)[:end]) for name, found in run(part).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _repeat_tokens(
    spec: GraphSpec, feeds: Mapping[str, TensorValue], tokens: int, wanted: int
) -> dict[str, TensorValue]:
    """Return inputs for more tokens, the given ones again and again."""
    repeated = dict(feeds)
    for tensor in spec.inputs:
        array = np.asarray(feeds[tensor.name])
        if is_per_token(tensor, array, tokens):
            repeated[tensor.name] = np.resize(array, (wanted, *array.shape[1:]))
    return repeated
