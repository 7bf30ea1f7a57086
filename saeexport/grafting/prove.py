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
from runtime.artifact.budgets import MOST_OWN_ERROR
from runtime.artifact.manifest import GraphSpec
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_INPUT
from runtime.errors import GraftError, ParityError
from runtime.hosts.manifest import DECODER, ENCODER, GraftParity, HostGolden, OutputParity
from runtime.hosts.names import ATTACH, ATTENTION_MASK, GOLDEN, INPUT_IDS, POSITION_IDS, SPLICE, TAP, USE_ERROR_TERM, at
from runtime.hosts.rule import PROVES, host_budget, host_error
from runtime.session.interventions import Intervention

from ..checkpoints.registry import load
from .build import build_probe
from .given import Given, select
from .host import Host
from .insert import Graft
from .reference import run, run_spliced
from .running import Graph, reconstruct, run_stages
from .write import write_graph

EDITED_FEATURES = 4
CAUSAL = 1e-3
"""Largest error of the outputs at earlier positions, when the last token is another one, of a host that is a decoder."""


WITHOUT_OPTIMISATIONS = "it does without ONNX Runtime's optimisations"


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
                "about other features than the SAEs in PyTorch. Rounding explains a few decisions, not as many."
            )
        proving = dataclasses.replace(proving, given=select(host, given, agree))
    return proving.prove()


@dataclass
class _Proving:
    folder: Path
    path: Path
    host: Host
    grafts: Sequence[Graft]
    graphs: dict[str, GraphSpec]
    given: Given

    def __post_init__(self) -> None:
        self.feeds = dict(self.given.reference.feeds)
        ids = self.feeds[INPUT_IDS] if INPUT_IDS in self.feeds else next(iter(self.feeds.values()))
        self.mask = self.feeds[ATTENTION_MASK] != 0 if ATTENTION_MASK in self.feeds else np.ones(ids.shape[:2], bool)
        self.hooks = [graft.hook for graft in self.grafts]
        present = {name for _, name in self.host.cache}
        self.outputs = [str(value.name) for value in self.host.graph.outputs if value.name not in present]
        self.saes = {graft.hook: load(graft.artifact.folder) for graft in self.grafts}
        self.failures: list[str] = []
        self.detach = {at(hook, ATTACH): np.array(False) for hook in self.hooks}
        self.without_error = {at(hook, USE_ERROR_TERM): np.array(False) for hook in self.hooks}

    def sequences_with_equal_decisions(self) -> Array:
        """Tell for each sequence whether the splice decides about features as the PyTorch SAEs between the stages do.

        A preactivation that is at its threshold but for rounding may be decided either way, and then moves everything
        behind it by more than rounding.
        """
        agree = np.ones(len(self.mask), bool)
        if SPLICE not in self.graphs or len(agree) == 1:
            return agree
        acts: dict[str, Array] = {}
        self.staged({}, acts)
        found = self.graph(SPLICE)(self.feeds | self.without_error)
        for hook in self.hooks:
            differs = (found[at(hook, HOOK_ACTS_POST)] != 0) != (acts[hook] != 0)
            agree &= ~(differs.any(axis=-1) & self.mask).any(axis=1)
        return agree

    def prove(self) -> Proof:
        plain = Graph(self.host.path)
        own = plain(self.feeds)
        noise = self.noise(own)
        tensors = {f"feeds/{name}": array for name, array in self.feeds.items()}
        tensors |= {f"outputs/{name}": own[name] for name in self.outputs}
        activations, noise_at_hooks = self.activations_at_hooks()
        tensors |= {at(hook, "input"): x for hook, x in activations.items()}
        parity = GraftParity(
            "cpu",
            "stages" if self.given.model is None else "pytorch",
            int(self.mask.sum()),
            False,
            {},
            {},
            {},
            {},
            {},
            {},
        )
        if TAP in self.graphs:
            found = self.graph(TAP)(self.feeds)
            exact = all(np.array_equal(found[name], own[name], equal_nan=True) for name in self.outputs)
            parity = dataclasses.replace(parity, exact=exact, tap=self.compare(TAP, found, own, noise))
        if mode := next((mode for mode in (TAP, SPLICE) if mode in self.graphs), None):
            found = self.graph(mode)(self.feeds | self.detach)
            inputs = {hook: found[at(hook, HOOK_INPUT)] for hook in self.hooks}
            parity = dataclasses.replace(
                parity, inputs=self.compare("activations", inputs, activations, noise_at_hooks)
            )
        if SPLICE in self.graphs:
            parity, golden = self.prove_splice(parity, own, noise)
            tensors |= golden
        if self.failures:
            raise ParityError("\n".join([f"{self.path} was not written: parity is not met", *self.failures]))
        save_file({name: np.ascontiguousarray(widened(y)) for name, y in tensors.items()}, self.folder / GOLDEN)
        kind = DECODER if self.is_causal(plain, own) else ENCODER
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
        reference, noise_spliced = self.spliced({}, noise)
        reference_edited, noise_edited = self.spliced(edits, noise)
        splice = self.compare("splice, SAEs attached", found, reference, noise_spliced)
        edited = self.compare("splice, features edited", found_edited, reference_edited, noise_edited)
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

    def noise(self, own: Mapping[str, Array]) -> dict[str, float]:
        """Return the own error of the host at each output, from what it is compared with.

        Raises:
            GraftError: It is too large to be one of rounding.
        """
        others = [(WITHOUT_OPTIMISATIONS, Graph(self.host.path, optimize=False)(self.feeds))]
        if self.given.model is not None:
            others.append(("the model in PyTorch", self.named(run(self.given.model, self.feeds), own)))
        if self.given.outputs:
            others.append(("the outputs in the file", dict(self.given.outputs)))
        noise = dict.fromkeys(self.outputs, 0.0)
        for what, outputs in others:
            for name in self.outputs:
                if name in outputs:
                    noise[name] = max(noise[name], self.own_error(name, own[name], outputs[name], what))
        return noise

    def own_error(self, name: str, y: Array, other: Array, what: str) -> float:
        """Return the error of an output of the host, after checking that rounding explains it."""
        error = host_error(y, other, self.mask)
        most = MOST_OWN_ERROR.get(str(y.dtype), MOST_OWN_ERROR["float32"])
        if not error <= most:
            raise GraftError(
                f"The host {self.host.path} computes something else than {what}: {name} is off by {error:.1e} of a "
                f"token's norm, and rounding explains at most {most:.1e}. Compare it with the model that it was "
                "exported from."
            )
        return error

    def spliced(
        self, edits: Mapping[str, Intervention], noise: Mapping[str, float]
    ) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the outputs with the PyTorch SAEs in the host, and the own errors of the host with them in it."""
        staged = self.staged(edits)
        if self.given.model is None:
            reference, other = staged, self.staged(edits, optimize=False)
        else:
            run_in_torch = run_spliced(self.given.model, self.feeds, self.saes, False, edits)
            reference = staged | self.named(run_in_torch, staged)
            other = staged
        own = {
            name: max(
                noise[name],
                self.own_error(name, other[name], reference[name], "PyTorch does, with the PyTorch SAEs in both"),
            )
            for name in self.outputs
        }
        return {name: reference[name] for name in self.outputs}, own

    def named(self, outputs: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, Array]:
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
                f"The model in PyTorch gives {', '.join(outputs)}, and the host {', '.join(self.outputs)}: no output has "
                "the same name or shape, so that nothing can be compared. Use the model that the host was exported from."
            )
        return found

    def activations_at_hooks(self) -> tuple[dict[str, Array], dict[str, float]]:
        """Return the tensor at each hook in the ungrafted host, and the own error of the host there."""
        probe = self.folder / "probe.onnx"
        try:
            write_graph(build_probe(self.host.model, self.grafts), self.host.model, probe, "")
            found, slow = Graph(probe)(self.feeds), Graph(probe, optimize=False)(self.feeds)
        finally:
            probe.unlink(missing_ok=True)
        activations, own = {}, {}
        for graft in self.grafts:
            x = activations[graft.hook] = found[graft.value]
            own[graft.hook] = self.own_error(graft.value, x, slow[graft.value], WITHOUT_OPTIMISATIONS)
            expected = self.given.reference.activations.get(graft.hook)
            if expected is not None:
                what = f"what it is compared with at {graft.hook}"
                own[graft.hook] = max(own[graft.hook], self.own_error(graft.value, x, expected.reshape(x.shape), what))
        return activations, own

    def staged(
        self, edits: Mapping[str, Intervention], acts: "dict[str, Array] | None" = None, optimize: bool = True
    ) -> dict[str, Array]:
        """Return the tensors of the stages with the PyTorch SAEs between them, without their error terms."""
        grafts = {graft.hook: graft for graft in self.grafts}

        def replace(hook: str, x: Array) -> Array:
            hooks = reconstruct(grafts[hook], self.saes[hook], x, edits.get(hook))
            if acts is not None:
                acts[hook] = hooks.acts_post
            return hooks.recons

        return run_stages(self.folder, self.graphs, self.hooks, self.feeds, replace, optimize)

    def decode(self, graph: Graph, found: Mapping[str, Array], noise: Mapping[str, float]) -> dict[str, OutputParity]:
        """Judge the outputs of the splice token by token, each with the cache of those before."""
        given = dict(self.feeds)
        parts: dict[str, list[Array]] = {name: [] for name in self.outputs}
        for i in range(self.mask.shape[1]):
            step = given | self.without_error | {INPUT_IDS: self.feeds[INPUT_IDS][:, i : i + 1]}
            if ATTENTION_MASK in self.feeds:
                step[ATTENTION_MASK] = self.feeds[ATTENTION_MASK][:, : i + 1]
            if POSITION_IDS in self.feeds:
                step[POSITION_IDS] = self.feeds[POSITION_IDS][:, i : i + 1]
            outputs = graph(step)
            given |= {past: outputs[present] for past, present in self.host.cache}
            for name in self.outputs:
                parts[name].append(outputs[name])
        joined = {name: np.concatenate(part, axis=1) for name, part in parts.items()}
        return self.compare("splice, token by token", joined, found, noise)

    def is_causal(self, graph: Graph, own: Mapping[str, Array]) -> bool:
        """Tell whether the outputs at earlier positions are the same with another last token."""
        ids = self.feeds.get(INPUT_IDS)
        if ids is None or ids.shape[1] < 2 or not self.mask[:, -1].any():
            return bool(self.host.cache)
        changed = ids.copy()
        changed[:, -1] = np.where(ids[:, -1] == ids[:, 0], 1, ids[:, 0])
        outputs, earlier = graph(self.feeds | {INPUT_IDS: changed}), self.mask.copy()
        earlier[:, -1] = False
        by_position = [name for name in self.outputs if own[name].shape[:2] == self.mask.shape]
        return all(host_error(outputs[name], own[name], earlier) < CAUSAL for name in by_position) and bool(by_position)

    def graph(self, name: str) -> Graph:
        return Graph(self.folder / self.graphs[name].file)

    def compare(
        self, what: str, found: Mapping[str, Array], expected: Mapping[str, Array], noise: Mapping[str, float]
    ) -> dict[str, OutputParity]:
        """Return the record of each output, and note those whose error exceeds its budget."""
        records = {}
        for name in noise:
            budget = host_budget(noise[name], str(expected[name].dtype))
            error = host_error(found[name].reshape(expected[name].shape), expected[name], self.mask)
            if not error <= budget:
                self.failures.append(f"{what}: {name}: the error is {error:.3e}, its budget {budget:.3e}.")
            records[name] = OutputParity(noise[name], error, budget)
        return records

    def check_moves(
        self, what: str, found: Mapping[str, Array], before: Mapping[str, Array], records: Mapping[str, OutputParity]
    ) -> None:
        """Note if no output moves by more than `PROVES` budgets."""
        moves = {name: host_error(found[name], before[name], self.mask) / records[name].budget for name in self.outputs}
        if not max(moves.values()) > PROVES:
            self.failures.append(
                f"splice: {what} moves the outputs by {max(moves.values()):.1f} budgets at most, and more than "
                f"{PROVES:.0f} are needed: the splice does nothing, or the comparison proves nothing."
            )


def typical_edit(acts_post: Array) -> Intervention:
    """Return an edit of the features that are on most often: one is ablated, one clamped, one scaled, one added to.

    Args:
        acts_post: Feature activations, `(tokens, d_sae)`.
    """
    acts_post = widened(acts_post)
    ids = np.argsort(-(acts_post != 0).sum(axis=0), kind="stable")[:EDITED_FEATURES]
    size = [abs(column[column != 0]).mean() if column.any() else 1.0 for column in acts_post[:, ids].T]
    scale, shift = (np.array(row[: len(ids)]) for row in ((0, 0, 0.5, 1), (0, 1, 0, 1)))
    return Intervention(ids, scale, shift * size)
