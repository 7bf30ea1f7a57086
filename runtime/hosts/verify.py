"""Proof of a grafted host without PyTorch: runs its graphs on the golden batch, by the rules of `runtime.hosts.rule`.

    graph        what is compared                                  with
    -----------  ------------------------------------------------  -------------------------------------------------
    tap          outputs; the activation at each hook              those of the ungrafted host, recorded
                 hooks of each SAE                                 the SAE's artifact on that activation
    features     hook_sae_acts_post of each SAE                    the SAE's artifact on the recorded activation
    splice       outputs with no SAE attached                      those of the ungrafted host, recorded
                 ... all attached, without the error terms         those of the PyTorch SAEs in the host, recorded
                 ... the same under an edit                        the same
                 ... one SAE attached; all with the error terms    the stages with the SAEs' artifacts between them
                 ... token by token with the cache                 all tokens at once
    stages       outputs with the SAEs' artifacts between them     those of the PyTorch SAEs in the host, recorded

Each SAE must move an output by more than `PROVES` budgets, and so must the edit: a splice that ignores its inputs would
pass every comparison in which it makes little difference.
"""

import contextlib
import os
from collections.abc import Mapping, Sequence

import numpy as np

from ..arrays.dtypes import FLOAT32, widened
from ..arrays.tensor import Array
from ..artifact.folder import read_artifact
from ..artifact.names import HOOK_ACTS_POST, HOOK_ERROR, HOOK_NAMES
from ..artifact.signature import read_signed
from ..errors import ArtifactError, InputError, IntegrityError, ParityError, ProviderError, SAEError, SignatureError
from ..parity.report import Report, Verdict
from ..parity.verify import verify as verify_artifact
from .attaching import Setup
from .feeds import complete_feeds
from .folder import is_host, read_host
from .generation import read_step_by_step
from .golden import GoldenHost, load_golden_host
from .hook_proof import HookProof
from .manifest import MANIFEST, GraftParity, OutputParity
from .names import FEATURES, SPLICE, TAP, activation_name, at, stage
from .rule import as_errors, host_error, host_errors, needed_move
from .running import HostRunner


def verify(
    path: str | os.PathLike[str],
    device: str = "auto",
    precision: str = FLOAT32,
    *,
    public_key: str | os.PathLike[str] | None = None,
) -> Report:
    """Verify the files of an artifact or of a grafted host, and every output of every graph that runs on the device.

    The report of an artifact names the graphs that were not run, such as those that no CPU computes in half precision,
    and the packages that have another version here than where the folder was made. A grafted host is judged by
    `runtime.hosts.rule`.

    Args:
        path: Folder of the artifact or of the grafted host.
        device: Device to run on, as `SAESession` takes it.
        precision: "float32", or "tf32" for a GPU that computes float32 products in TF32. TF32 has wider budgets of its
            own, measured at export; a grafted host has none.
        public_key: PEM file with the key or the certificates that the folder must be signed with, as `SAESession`
            takes it. None does not ask for a signature.

    Returns:
        The report. `report.failures` is empty if the folder passes. If a file was changed, or the signature is not the
        one that was asked for, nothing is run.

    Raises:
        ArtifactError: The folder is neither an artifact nor a grafted host.
        ProviderError: The device cannot be used.
        InputError: `public_key` cannot be read, or a grafted host is to be verified in TF32.
    """
    if not is_host(path):
        return verify_artifact(path, device, precision, public_key=public_key)
    if precision != FLOAT32:
        raise InputError(f"precision is {precision!r}; a grafted host is verified in its own. Leave it out.")
    return verify_host(path, device, public_key)


def assert_parity(path: str | os.PathLike[str], device: str = "auto") -> None:
    """Raise an error unless an artifact or a grafted host computes on this machine what PyTorch computed at export.

    It is meant for the test suite of a service.

    Args:
        path: Folder of the artifact or of the grafted host.
        device: Device to run on, as `SAESession` takes it.

    Raises:
        ParityError: It does not, or it is an artifact with int8 weights. The message lists every reason.
        ArtifactError: The folder is neither an artifact nor a grafted host.
        ProviderError: The device cannot be used.
    """
    if not is_host(path) and read_artifact(path).manifest.parity is None:
        raise ParityError(
            f"{path} has int8 weights: it is not the original. Its manifest says how much it loses (python -m runtime "
            "inspect). To check that this machine computes what the exporter's did, "
            "use verify(path).raise_for_failures()."
        )
    verify(path, device).raise_for_failures()


def verify_host(
    path: str | os.PathLike[str], device: str = "auto", public_key: str | os.PathLike[str] | None = None
) -> Report:
    """Verify the files of a grafted host, and its graphs on the golden batch; see `verify`."""
    try:
        host = read_signed(path, public_key, read_host, MANIFEST)
    except SignatureError as error:
        return Report(f"{path}: not signed as asked", problems=[str(error)])
    facts = {"made_with": host.manifest.producer, "sha256": host.sha256}
    if problems := host.damage():
        return Report(f"{path}: not intact", problems=problems, **facts)  # type: ignore[arg-type]
    with contextlib.closing(HostRunner(path, device)) as runner:
        if runner.host.sha256 != host.sha256:
            raise IntegrityError(f"{path} was replaced while it was verified. Verify it again.")
        golden = load_golden_host(runner.host)
        tokens = int(golden.mask.sum())
        report = Report(
            f"{runner.host.path} on {runner.device}: {tokens} tokens", device=runner.device, tokens=tokens,
            made_with=host.manifest.producer, sha256=runner.host.sha256,
        )  # fmt: skip
        _HostProof(runner, golden, report).judge()
    return report


class _HostProof:
    """Runs the graphs of one host on its golden batch, and adds verdicts to a report."""

    def __init__(self, runner: HostRunner, golden: GoldenHost, report: Report) -> None:
        self.runner, self.golden, self.report = runner, golden, report
        self.manifest = runner.host.manifest
        self.parity: GraftParity = self.manifest.parity

    def judge(self) -> None:
        """Judge every graph; the error of one that cannot be run is a problem, and the others are judged."""
        for graph, judge in ((TAP, self.judge_tap), (FEATURES, self.judge_features), (SPLICE, self.judge_splice)):
            if graph not in self.manifest.graphs:
                continue
            try:
                judge()
            except ProviderError:
                raise
            except SAEError as error:
                self.report.problems.append(f"{graph}: {error}")
            finally:
                self.runner.graphs.release(graph)  # one copy of the host's weights at a time

    def judge_tap(self) -> None:
        """Judge the outputs of the tap, the activations at the hooks, and the hooks of the SAEs."""
        tensors = self.runner.graphs.run(TAP, self.golden.feeds)
        self.compare(TAP, tensors, self.golden.outputs, self.parity.tap)
        names = {
            hook: activation_name(sae.hook, hook) for sae in self.manifest.saes for hook in (sae.hook, sae.replaced)
        }
        inputs = {name: self.runner.with_heads(name, tensors[name]) for name in names.values()}
        recorded = {names[hook]: array for hook, array in self.golden.inputs.items()}
        budgets = {names[hook]: record for hook, record in self.parity.inputs.items()}
        self.compare(TAP, inputs, recorded, budgets)
        for sae in self.manifest.saes:
            hook = sae.hook
            found = {name: self.rows(tensors[at(hook, name)]) for name in HOOK_NAMES[1:] if at(hook, name) in tensors}
            target = None if sae.target is None else self.rows(inputs[names[sae.replaced]])
            proof = HookProof(self.runner.sae(hook), hook, self.rows(inputs[names[hook]]), target)
            self.report.verdicts.extend(proof.judge(TAP, found))

    def judge_features(self) -> None:
        """Judge the activations of the features, on the recorded activation at each hook."""
        tensors = self.runner.graphs.run(FEATURES, self.golden.feeds)
        for hook in self.manifest.hooks:
            budget = self.parity.inputs[hook].budget  # the graph computes the activation itself
            proof = HookProof(self.runner.sae(hook), hook, self.rows(self.golden.inputs[hook]), input_budget=budget)
            found = {HOOK_ACTS_POST: self.rows(tensors[at(hook, HOOK_ACTS_POST)])}
            self.report.verdicts.extend(proof.judge(FEATURES, found))

    def judge_splice(self) -> None:
        """Judge the outputs of the splice with SAEs attached and detached, and under the edit."""
        hooks, golden = self.manifest.hooks, self.golden
        without = dict.fromkeys(hooks, False)
        self.compare("splice, none attached", self.spliced({}), golden.outputs, self.parity.detached)
        spliced = self.spliced(without)
        self.compare("splice", spliced, golden.splice, self.parity.splice)
        edited = self.spliced(without, edit=True)
        self.compare("splice, edited", edited, golden.edited, self.parity.edited)
        self.check_moves("the edit", edited, spliced, self.parity.edited)
        staged = self.staged(without)
        self.compare("stages", staged, golden.splice, self.parity.splice)
        for hook in hooks:
            alone = self.spliced({hook: False})
            self.compare(f"splice, {hook} alone", alone, self.staged({hook: False}), self.parity.splice)
            self.check_moves(f"attaching the SAE at {hook}", alone, golden.outputs, self.parity.splice)
        with_error = {hook: HOOK_ERROR in sae.manifest.sae.hooks for hook, sae in self.runner.host.saes.items()}
        self.compare("splice, error terms", self.spliced(with_error), self.staged(with_error), self.parity.splice)
        if self.parity.decoded:
            self.judge_decoding(spliced)

    def judge_decoding(self, prefill: Mapping[str, Array]) -> None:
        """Judge the outputs token by token with the cache."""
        mask, setup = self.golden.mask, Setup(dict.fromkeys(self.manifest.hooks, False), {})
        names = [name for name in self.parity.decoded if prefill[name].shape[: mask.ndim] == mask.shape]

        def run(feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
            return self.run(feeds, setup, wanted)

        found = read_step_by_step(self.manifest.host.cache, self.golden.feeds, mask, run, names)
        self.compare("splice, token by token", found, {name: prefill[name] for name in names}, self.parity.decoded)

    def spliced(self, attached: Mapping[str, bool], edit: bool = False) -> dict[str, Array]:
        """Return the outputs of the splice with some SAEs attached, by hook with their error terms."""
        edits = self.golden.edits if edit else {}
        return self.run(self.golden.feeds, Setup(attached, edits), list(self.golden.outputs))

    def staged(self, attached: Mapping[str, bool]) -> dict[str, Array]:
        """Return the outputs of the stages with the artifacts of some SAEs between them."""
        outputs = self.runner.run_in_stages(self.golden.feeds, Setup(attached, {}))
        for i in range(len(self.manifest.all_hooks) + 1):
            if stage(i) in self.manifest.graphs:
                self.runner.graphs.release(stage(i))
        return {name: outputs[name] for name in self.golden.outputs}

    def run(self, feeds: Mapping[str, Array], setup: Setup, names: Sequence[str]) -> dict[str, Array]:
        return self.runner.run(complete_feeds(self.manifest.host, feeds), setup, names)

    def rows(self, tensor: Array) -> Array:
        """Return a row for each token that counts."""
        mask = self.golden.mask
        if tensor.shape[: mask.ndim] != mask.shape:
            raise ArtifactError(f"A tensor at a hook is {tensor.shape}, and the tokens are {mask.shape}.")
        return tensor[mask]

    def compare(
        self,
        graph: str,
        found: Mapping[str, Array],
        expected: Mapping[str, Array],
        records: Mapping[str, OutputParity],
    ) -> None:
        """Add a verdict for each output."""
        for name, reference in expected.items():
            if name not in records:
                self.report.problems.append(f"{graph}: {name} has no budget in host.json. Graft the SAEs again.")
                continue
            self.report.verdicts.append(judge_output(graph, name, found[name], reference, self.golden.mask,
                                                     records[name].budget))  # fmt: skip

    def check_moves(
        self, what: str, found: Mapping[str, Array], still: Mapping[str, Array], records: Mapping[str, OutputParity]
    ) -> None:
        """Add a problem unless a change moves some output by more budgets than `needed_move` says."""
        needed = needed_move({sae.manifest.sae.dtype for sae in self.runner.host.saes.values()})
        moved = {name: host_error(found[name], still[name], self.golden.mask) for name in still if name in records}
        if not any(by > needed * records[name].budget for name, by in moved.items()):
            sizes = ", ".join(f"{name} by {by:.1e} (budget {records[name].budget:.1e})" for name, by in moved.items())
            self.report.problems.append(
                f"splice: {what} moves {sizes}; it must move one by more than {needed:g} budgets, or nothing is proved."
            )


def judge_output(graph: str, name: str, y: Array, reference: Array, mask: Array, budget: float) -> Verdict:
    """Return the verdict on an output of the host.

    The budget is for the norm of a token. The largest difference of one element that it allows follows from it.
    """
    if y.shape != reference.shape:
        return Verdict(graph, name, None, None, (f"{graph}: {name}: it is {y.shape}, and must be {reference.shape}.",))
    if not np.isfinite(widened(y)[mask] if y.shape[: mask.ndim] == mask.shape else widened(y)).all():
        return Verdict(graph, name, None, None, (f"{graph}: {name}: a value is not finite.",))
    errors, limit = host_errors(y, reference, mask), as_errors(budget, reference, mask)
    failures: tuple[str, ...] = ()
    if not errors.token <= budget:
        failures = (f"{graph}: {name}: the token error is {errors.token:.3e}, its budget {budget:.3e}.",)
    return Verdict(graph, name, errors, limit, failures)
