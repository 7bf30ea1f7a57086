"""Proves a grafted host before it is put in its place, and writes its golden batch.

tap         The host's outputs are those of the ungrafted host, and the hooks are what the SAE makes of the tensor
there, by the rules for SAEs.
splice      Without an SAE attached, the outputs are the ungrafted host's. With all of them, without their error
terms and under an edit, they are those of the host with the PyTorch SAEs in it. Attaching the SAEs, and
editing, moves the outputs; a splice that does nothing would pass otherwise.
features    The activations are those of the tap.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from runtime.arrays.tensor import Array
from runtime.artifact.manifest import GraphSpec
from runtime.artifact.names import HOOK_ACTS_POST
from runtime.errors import ParityError
from runtime.hosts.manifest import ENCODER, GraftParity, HostGolden, OutputParity
from runtime.hosts.names import ATTACH, ATTENTION_MASK, GOLDEN, INPUT_IDS, SPLICE, TAP, USE_ERROR_TERM, at
from runtime.session.interventions import Intervention

from ..checkpoints.registry import load
from .host import Host
from .insert import Place
from .rule import budget_of, error_of
from .running import Graph, reconstruct, run_stages

EDITED_FEATURES = 4
PROVES = 10.0
"""How many budgets attaching the SAEs must move an output at least, for the proof to show anything."""


@dataclass(frozen=True)
class Proof:
    """What the proof of a grafted host found.

    Attributes:
        kind: Kind of the host, "encoder" or "decoder".
        golden: The golden batch.
        parity: Errors and budgets.
    """

    kind: str
    golden: HostGolden
    parity: GraftParity


def prove(
    folder: Path, path: Path, host: Host, places: Sequence[Place], graphs: dict[str, GraphSpec],
    feeds: dict[str, Array], source: str,
) -> Proof:  # fmt: skip
    """Run the graphs of a folder, judge them, and write the golden batch.

    Args:
        folder: Folder with everything except the manifest and the golden batch.
        path: Final path of the folder, for messages.
        host: The host.
        places: The SAEs, in the order of the host.
        graphs: Specs of the graphs by name.
        feeds: Inputs of the host.
        source: Where they are from.

    Raises:
        ParityError: A graph does not compute what it must, or the splice moves nothing.
    """
    return _Prover(folder, path, host, places, graphs, feeds).prove(source)


class _Prover:
    def __init__(
        self, folder: Path, path: Path, host: Host, places: Sequence[Place], graphs: dict[str, GraphSpec],
        feeds: dict[str, Array],
    ) -> None:  # fmt: skip
        self.folder, self.path, self.host, self.places, self.graphs, self.feeds = (
            folder,
            path,
            host,
            places,
            graphs,
            feeds,
        )
        self.hooks = [place.hook for place in places]
        self.mask = feeds[ATTENTION_MASK] != 0 if ATTENTION_MASK in feeds else np.ones(feeds[INPUT_IDS].shape, bool)
        present = {name for _, name in host.cache}
        self.outputs = [str(value.name) for value in host.graph.outputs if value.name not in present]
        self.failures: list[str] = []

    def prove(self, source: str) -> Proof:
        host = Graph(self.host.path)
        self.own = host(self.feeds)
        slow = Graph(self.host.path, optimize=False)(self.feeds)
        self.noise = {name: self.error(slow[name], self.own[name]) for name in self.outputs}
        tensors = {f"feeds/{name}": array for name, array in self.feeds.items()}
        tensors |= {f"outputs/{name}": self.own[name] for name in self.outputs}
        exact, tap, detached, splice, edited, moved = False, {}, {}, {}, {}, {}
        if TAP in self.graphs:
            found = self.graph(TAP)(self.feeds)
            exact = all(np.array_equal(found[name], self.own[name]) for name in self.outputs)
            tap = self.compare(TAP, found, self.own)
        if SPLICE in self.graphs:
            graph = self.graph(SPLICE)
            detach = {at(hook, ATTACH): np.array(False) for hook in self.hooks}
            without_error = {at(hook, USE_ERROR_TERM): np.array(False) for hook in self.hooks}
            saes = {place.hook: load(place.artifact.folder) for place in self.places}
            clean = run_stages(self.folder, self.graphs, self.hooks, self.feeds, lambda hook, x: x)
            tensors |= {at(hook, "input"): clean[hook] for hook in self.hooks}
            detached = self.compare("detached", graph(self.feeds | detach), self.own)
            reference = self.staged(saes, {})
            found = graph(self.feeds | without_error)
            splice = self.compare(SPLICE, found, reference)
            moved = {name: self.error(found[name], self.own[name]) for name in self.outputs}
            edits = {hook: typical_edit(found[at(hook, HOOK_ACTS_POST)]) for hook in self.hooks}
            expected = self.staged(saes, edits)
            given = {
                at(place.hook, name): np.asarray(array)
                for place in self.places
                for name, array in edits[place.hook].feeds((self.mask.size,), place.sae.dtype).items()
            }
            edited = self.compare("edited", graph(self.feeds | without_error | given), expected)
            tensors |= {f"splice/{name}": reference[name] for name in self.outputs}
            tensors |= {f"edited/{name}": expected[name] for name in self.outputs}
            tensors |= {f"edit/{name}": array for name, array in given.items()}
        if self.failures:
            raise ParityError("\n".join([f"{self.path} was not written: parity is not met", *self.failures]))
        save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, self.folder / GOLDEN)
        tokens = int(self.mask.sum())
        parity = GraftParity("cpu", "stages", tokens, exact, tap, detached, splice, edited, {}, moved)
        return Proof(ENCODER, HostGolden(GOLDEN, tokens, source), parity)

    def graph(self, name: str) -> Graph:
        return Graph(self.folder / self.graphs[name].file)

    def staged(self, saes: Mapping[str, Any], edits: Mapping[str, Intervention]) -> dict[str, Array]:
        """Return the tensors of the stages with the PyTorch SAEs between them, without their error terms."""
        places = {place.hook: place for place in self.places}

        def replace(hook: str, x: Array) -> Array:
            return reconstruct(places[hook], saes[hook], x, edits.get(hook))

        return run_stages(self.folder, self.graphs, self.hooks, self.feeds, replace)

    def error(self, y: Array, reference: Array) -> float:
        return error_of(y, reference, self.mask)

    def compare(self, what: str, found: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, OutputParity]:
        """Return the record of each output, and note those that exceed their budgets."""
        records = {}
        for name in self.outputs:
            budget = budget_of(self.noise[name], str(self.own[name].dtype))
            error = self.error(found[name], expected[name])
            if not error <= budget:
                self.failures.append(f"{what}: {name}: the error is {error:.3e}, its budget {budget:.3e}.")
            records[name] = OutputParity(self.noise[name], error, budget)
        return records


def typical_edit(acts_post: Array) -> Intervention:
    """Return an edit of the features that are on most often: one is ablated, one clamped, one scaled, one added to."""
    rows = acts_post.reshape(-1, acts_post.shape[-1])
    ids = np.argsort(-(rows != 0).sum(axis=0), kind="stable")[:EDITED_FEATURES]
    size = np.array([abs(rows[rows[:, i] != 0, i]).mean() if rows[:, i].any() else 1.0 for i in ids], rows.dtype)
    scale, shift = (np.array(row[: len(ids)], rows.dtype) for row in ((0, 0, 0.5, 1), (0, 1, 0, 1)))
    return Intervention(ids, scale[None], (shift * size)[None])
