"""Proves a grafted host before it is put in its place, and writes its golden batch.

    tap         The outputs are those of the ungrafted host.
    splice      Without an SAE attached, the outputs are those of the ungrafted host. With all of them, without their
                error terms, and under an edit, they are those of the model in PyTorch with the SAEs in it, or where
                there is no PyTorch model, of the stages of the host with the PyTorch SAEs between them.
    decoded     Token by token with the cache, the outputs of the splice are those of all tokens at once.

Attaching each SAE, and the edit, must move an output: a splice that does nothing would pass otherwise. The hooks are
judged when the folder is verified as a user would verify it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from runtime.arrays.dtypes import widened
from runtime.arrays.tensor import Array
from runtime.artifact.budgets import FLOOR
from runtime.artifact.manifest import GraphSpec
from runtime.artifact.names import HOOK_ACTS_POST
from runtime.errors import ParityError
from runtime.hosts.generation import read_step_by_step
from runtime.hosts.manifest import DECODER, ENCODER, CachePair, GraftParity, HostGolden, OutputParity
from runtime.hosts.names import (
    ATTACH,
    GOLDEN,
    INPUT_IDS,
    SPLICE,
    TAP,
    USE_ERROR_TERM,
    activation_name,
    at,
)
from runtime.hosts.rule import ROUNDINGS_OF_SAE, host_budget, host_error, needed_move
from runtime.session.interventions import Intervention

from .expected import Expected
from .given import Given, select
from .grafts import Graft
from .host import Host
from .running import Graph

EDITED_FEATURES = 4
STRONG = 4
"""How many times the size of their activations the edits are. They must move the outputs of a host in half precision by
more than its rounding does."""

CAUSAL = 1e-3
"""Largest error of the outputs at earlier positions of a decoder when the last token is another one."""


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
    folder: Path, path: Path, host: Host, grafts: Sequence[Graft], graphs: dict[str, GraphSpec], given: Given
) -> Proof:
    """Run the graphs of a folder, judge them, and write the golden batch.

    Args:
        folder: Folder with everything except the manifest and the golden batch.
        path: Final path of the folder, for messages.
        host: The host.
        grafts: The SAEs, in the order of the host.
        graphs: Specs of the graphs by name.
        given: What the host is compared with.

    Raises:
        GraftError: The host computes something else than the model that it is compared with.
        ParityError: A graph does not compute what it must, or an SAE or an edit moves nothing.
    """
    proving = _Proving(folder, path, host, grafts, graphs, given)
    agree = proving.sequences_with_equal_decisions()
    if not agree.all():
        if agree.sum() * 2 < len(agree):
            raise ParityError(
                f"{path} was not written: on {len(agree) - agree.sum()} of {len(agree)} sequences the splice decides "
                "about other features than the SAEs in PyTorch. Rounding explains a few decisions, not as many, except "
                "in half precision: export such SAEs in float32."
            )
        proving = _Proving(folder, path, host, grafts, graphs, select(host, given, agree))
    return proving.prove()


class _Proving:
    """Judges the graphs of a folder against what they must compute, and notes what fails."""

    def __init__(
        self, folder: Path, path: Path, host: Host, grafts: Sequence[Graft], graphs: dict[str, GraphSpec], given: Given
    ) -> None:
        self.expected = Expected(folder, host, grafts, graphs, given)
        self.feeds, self.mask = self.expected.feeds, self.expected.mask
        self.hooks, self.outputs = [graft.hook for graft in grafts], self.expected.outputs
        self.folder, self.path, self.host, self.grafts, self.graphs, self.given = (
            folder,
            path,
            host,
            grafts,
            graphs,
            given,
        )
        self.failures: list[str] = []
        self.detach = {at(hook, ATTACH): np.array(False) for hook in self.hooks}
        self.without_error = {at(hook, USE_ERROR_TERM): np.array(False) for hook in self.hooks}

    def sequences_with_equal_decisions(self) -> Array:
        """Tell for each sequence whether the splice decides about features as the PyTorch SAEs between the stages do.

        A preactivation that is at its threshold but for rounding may be decided either way, and then moves everything
        behind it by more than rounding. A feature whose activation is no more than the rounding of its token's largest
        one moves nothing, as one that a ReLU just lets through.
        """
        agree = np.ones(len(self.mask), bool)
        if SPLICE not in self.graphs or len(agree) == 1:
            return agree
        acts: dict[str, Array] = {}
        self.expected.staged({}, acts)
        found = self.graph(SPLICE)(self.feeds | self.without_error)
        for graft in self.grafts:
            own, other = widened(found[at(graft.hook, HOOK_ACTS_POST)]), widened(acts[graft.hook])
            rounding = ROUNDINGS_OF_SAE * FLOOR[graft.sae.dtype] * np.abs(other).max(axis=-1, keepdims=True)
            differs = ((own != 0) != (other != 0)) & (np.abs(own - other) > rounding)
            agree &= ~(differs.any(axis=-1) & self.mask).any(axis=1)
        return agree

    def prove(self) -> Proof:
        """Judge every graph, and write the golden batch; see `prove`."""
        plain = self.expected.ungrafted()
        own = plain(self.feeds)
        kind = DECODER if self.is_causal(plain, own) else ENCODER
        del plain  # its weights, before others are loaded
        noise = self.expected.noise(own)
        tensors = {f"feeds/{name}": array for name, array in self.feeds.items()}
        tensors |= {f"outputs/{name}": own[name] for name in self.outputs}
        activations, noise_at_hooks = self.expected.activations_at_hooks()
        tensors |= {at(hook, "input"): x for hook, x in activations.items()}
        reference = "stages" if self.given.model is None else "pytorch"
        parity = GraftParity("cpu", reference, int(self.mask.sum()), False, {}, {}, {}, {}, {}, {})
        if TAP in self.graphs:
            found = self.graph(TAP)(self.feeds)
            exact = all(np.array_equal(found[name], own[name], equal_nan=True) for name in self.outputs)
            parity = dataclasses.replace(parity, exact=exact, tap=self.compare(TAP, found, own, noise))
        inputs = activations  # a graph of the features alone does not give them out
        if mode := next((mode for mode in (TAP, SPLICE) if mode in self.graphs), None):
            found = self.graph(mode)(self.feeds | self.detach)
            inputs = {hook.name: found[activation_name(hook.graft.hook, hook.name)] for hook in self.expected.hooks}
        parity = dataclasses.replace(parity, inputs=self.compare("activations", inputs, activations, noise_at_hooks))
        if SPLICE in self.graphs:
            parity, golden = self.prove_splice(parity, own, noise)
            tensors |= golden
        if self.failures:
            raise ParityError("\n".join([f"{self.path} was not written: parity is not met", *self.failures]))
        # Not `ascontiguousarray`, which makes an array of a scalar.
        save_file({name: np.asarray(widened(y), order="C") for name, y in tensors.items()}, self.folder / GOLDEN)
        return Proof(kind, HostGolden(GOLDEN, int(self.mask.sum()), self.given.source), parity)

    def prove_splice(
        self, parity: GraftParity, own: Mapping[str, Array], noise: Mapping[str, float]
    ) -> tuple[GraftParity, dict[str, Array]]:
        """Judge the splice, and return the record with its errors, and the tensors of the golden batch."""
        graph = self.graph(SPLICE)
        detached = self.compare("splice, no SAE attached", graph(self.feeds | self.detach), own, noise)
        found = graph(self.feeds | self.without_error)
        edits = {hook: typical_edit(found[at(hook, HOOK_ACTS_POST)][self.mask]) for hook in self.hooks}
        given = {
            at(graft.hook, name): np.asarray(array)
            for graft in self.grafts
            for name, array in edits[graft.hook].feeds((1,), graft.sae.dtype).items()
        }
        found_edited = graph(self.feeds | self.without_error | given)
        reference, noise_spliced = self.expected.spliced({}, noise)
        reference_edited, noise_edited = self.expected.spliced(edits, noise)
        dtype = self.expected.sae_dtype
        splice = self.compare("splice, SAEs attached", found, reference, noise_spliced, dtype)
        edited = self.compare("splice, features edited", found_edited, reference_edited, noise_edited, dtype)
        moved = {name: host_error(found[name], own[name], self.mask) for name in self.outputs}
        for hook in self.hooks:
            alone = graph(self.feeds | self.detach | {at(hook, ATTACH): np.array(True)} | self.without_error)
            self.check_moves(f"attaching the SAE at {hook}", alone, own, splice)
            ids = {name: array for name, array in given.items() if name.startswith(f"{hook}.")}
            self.check_moves(f"editing features at {hook}", graph(self.feeds | self.without_error | ids), found, splice)
        decoded = self.decode(graph, found, noise_spliced) if self.host.cache else {}
        golden = {f"splice/{name}": reference[name] for name in self.outputs}
        golden |= {f"edited/{name}": reference_edited[name] for name in self.outputs}
        golden |= {f"edit/{name}": array for name, array in given.items()}
        record = dataclasses.replace(
            parity, detached=detached, splice=splice, edited=edited, decoded=decoded, moved=moved
        )
        return record, golden

    def decode(self, graph: Graph, found: Mapping[str, Array], noise: Mapping[str, float]) -> dict[str, OutputParity]:
        """Judge the outputs of the splice token by token, each with the cache of those before."""
        cache = [CachePair(past, present) for past, present in self.host.cache]
        names = [name for name in self.outputs if found[name].shape[: self.mask.ndim] == self.mask.shape]
        joined = read_step_by_step(
            cache, self.feeds, self.mask, lambda feeds, _: graph({**feeds, **self.without_error}), names
        )
        noise = {name: noise[name] for name in names}
        return self.compare("splice, token by token", joined, found, noise, self.expected.sae_dtype)

    def is_causal(self, graph: Graph, own: Mapping[str, Array]) -> bool:
        """Tell whether the outputs at earlier positions are the same with another last token."""
        ids = self.feeds.get(INPUT_IDS)
        if ids is None or ids.shape[1] < 2 or not self.mask[:, -1].any():
            return bool(self.host.cache)
        changed = ids.copy()
        changed[:, -1] = np.where(ids[:, -1] == 1, 0, 1)
        outputs, earlier = graph(self.feeds | {INPUT_IDS: changed}), self.mask.copy()
        earlier[:, -1] = False
        by_position = [name for name in self.outputs if own[name].shape[:2] == self.mask.shape]
        return all(host_error(outputs[name], own[name], earlier) < CAUSAL for name in by_position) and bool(by_position)

    def graph(self, name: str) -> Graph:
        """Load a graph of the folder."""
        return Graph(self.folder / self.graphs[name].file)

    def compare(
        self,
        what: str,
        found: Mapping[str, Array],
        expected: Mapping[str, Array],
        noise: Mapping[str, float],
        sae_dtype: str = "",
    ) -> dict[str, OutputParity]:
        """Return the record of each output, and note those whose error exceeds its budget.

        `sae_dtype` is the dtype of the attached SAEs; "" if none is attached.
        """
        records = {}
        for name in noise:
            budget = host_budget(noise[name], self.expected.dtype, sae_dtype)
            error = host_error(found[name].reshape(expected[name].shape), expected[name], self.mask)
            if not error <= budget:
                self.failures.append(f"{what}: {name}: the error is {error:.3e}, its budget {budget:.3e}.")
            records[name] = OutputParity(noise[name], error, budget)
        return records

    def check_moves(
        self, what: str, found: Mapping[str, Array], before: Mapping[str, Array], records: Mapping[str, OutputParity]
    ) -> None:
        """Note if no output moves by more budgets than `needed_move` says."""
        moves = {name: host_error(found[name], before[name], self.mask) / records[name].budget for name in self.outputs}
        needed = needed_move([self.expected.sae_dtype])
        if not max(moves.values()) > needed:
            self.failures.append(
                f"splice: {what} moves the outputs by {max(moves.values()):.1f} budgets at most, and more than "
                f"{needed:.0f} are needed: the splice does nothing, or the comparison proves nothing."
            )


def typical_edit(acts_post: Array) -> Intervention:
    """Return an edit of the features that are on most often: one is ablated, one clamped, one scaled, one added to.

    Args:
        acts_post: Feature activations, `(tokens, d_sae)`.
    """
    acts_post = widened(acts_post)
    ids = np.argsort(-(acts_post != 0).sum(axis=0), kind="stable")[:EDITED_FEATURES]
    size = [abs(column[column != 0]).mean() if column.any() else 1.0 for column in acts_post[:, ids].T]
    scale, shift = (np.array(row[: len(ids)]) for row in ((0, 0, STRONG, 1), (0, STRONG, 0, STRONG)))
    return Intervention(ids, scale, shift * size)
