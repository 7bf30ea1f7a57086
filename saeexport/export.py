"""Export: trace the SAE, rewrite its graph, write the artifact, verify it, and only then put it in its place."""

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from safetensors import SafetensorError
from safetensors.torch import save_file
from tqdm import tqdm

from runtime.artifact import Artifact, read_artifact, record_of
from runtime.errors import ExportError
from runtime.golden import save_golden
from runtime.manifest import (
    FORMAT_VERSION,
    GRAPHS,
    HOOK_ERROR,
    HOOK_NAMES,
    MANIFEST,
    MODEL,
    STEER,
    GoldenSpec,
    HookParity,
    Manifest,
    ParityRecord,
    SAEConfig,
    graph_file,
    graph_specs,
)
from runtime.parity import Reference, Report, SteeredReference, judge
from runtime.session import SAESession
from runtime.verify import judge_session
from runtime.verify import verify as verify_golden

from .activations import prepare_activations
from .checkpoints import load
from .exportable import check_exportable
from .passes.describe import describe
from .passes.external import point_to_weights
from .passes.gemm import products_to_gemm
from .passes.steer import add_interventions
from .passes.strip import strip_remarks
from .passes.subgraph import extract
from .staging import check_target, staged_folder
from .trace import trace
from .verify import reference_of, six_hooks, steered_reference_of, typical_intervention

WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
STAGES = 4
GOLDEN_TOKENS, GOLDEN_BYTES = 64, 6 << 20

PACKAGES = (
    "saeexport", "torch", "transformer_lens", "einops", "onnx", "onnx_ir", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "numpy", "safetensors",
)  # fmt: skip


def export(
    sae: Any,
    path: str | os.PathLike[str],
    activations: Any = None,
    head_shape: tuple[int, int] | None = None,
    *,
    overwrite: bool = False,
) -> Artifact:
    """Write a HookedSAE to the folder `path` as a verified artifact, and return it.

    The same SAE, activations and versions give the same bytes. If anything fails nothing is left behind, and what was
    at `path` before is still there.

    Args:
        sae: a HookedSAE in float32, no hook functions attached.
        path: a folder that does not exist yet; its parent is made if need be.
        activations: numpy array or tensor of real inputs, `(..., d_in)` or `(..., n_heads, d_head)`. The proof is made
            on a sample of them and a part of it is stored. None draws random ones, and the manifest calls them
            synthetic.
        head_shape: (n_heads, d_head), for graphs that take `(tokens, n_heads, d_head)`; None for `(tokens, d_in)`.
            `runtime` takes both from either.
        overwrite: replace an artifact that is at `path`.

    Raises:
        ExportError: the SAE cannot be exported, or the folder cannot be written.
        InputError: the activations do not fit the SAE.
        ParityError: the graphs do not compute what the SAE computes.
    """
    path = Path(path)
    check_exportable(sae)
    check_target(path, overwrite)
    config = _config_of(sae, head_shape)
    batch = prepare_activations(sae, config, activations)
    try:
        with staged_folder(path, overwrite) as folder, _stages(f"exporting {path.name}") as stage:
            stage("writing weights")
            _write_weights(sae, folder)
            stage("tracing")
            _write_graphs(sae, config, folder)
            stage("running the original, and in float64")
            clean = reference_of(sae, batch)
            steered = steered_reference_of(sae, clean, typical_intervention(clean))
            source = "synthetic" if activations is None else "activations"
            golden = GoldenSpec(GOLDEN, _golden_tokens(config, len(batch)), source)
            save_golden(steered, golden.tokens, str(folder / GOLDEN))
            stage("proving parity")
            _prove(folder, path, config, steered, golden)
            _prove_checkpoint(sae, folder, clean)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} was not written: {error}") from error
    return read_artifact(path)


def _config_of(sae: Any, head_shape: tuple[int, int] | None) -> SAEConfig:
    cfg = sae.cfg
    if head_shape is not None:
        n_heads, d_head = head_shape
        if not cfg.hook_name.endswith("_z") or n_heads * d_head != cfg.d_in or n_heads < 2:
            raise ExportError(
                f"head_shape is {tuple(head_shape)}; it needs a hook_name that ends in _z (it is {cfg.hook_name!r}) "
                f"and n_heads * d_head = d_in = {cfg.d_in} with at least 2 heads."
            )
    return SAEConfig(
        architecture="standard",
        d_in=cfg.d_in,
        d_sae=cfg.d_sae,
        hook_name=cfg.hook_name,
        use_error_term=bool(cfg.use_error_term),
        dtype=str(next(sae.parameters()).dtype).removeprefix("torch."),
        seed=cfg.seed,
        head_shape=None if head_shape is None else (int(head_shape[0]), int(head_shape[1])),
        fired_hooks=tuple(hook for hook in HOOK_NAMES if cfg.use_error_term or hook != HOOK_ERROR),
    )


def _write_weights(sae: Any, folder: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    save_file(state, folder / WEIGHTS)


def _write_graphs(sae: Any, config: SAEConfig, folder: Path) -> None:
    """Trace the SAE and write every graph of the contract, checked."""
    weights = folder / WEIGHTS
    model = products_to_gemm(strip_remarks(trace(sae, config.input_shape)))
    model = point_to_weights(model, weights, set(sae.state_dict()))
    sha256 = record_of(weights).sha256
    for name, contract in GRAPHS.items():
        if name == STEER:
            graph = add_interventions(extract(model, GRAPHS[MODEL].inputs, GRAPHS[MODEL].outputs), config)
        else:
            graph = extract(model, contract.inputs, contract.outputs)
        file = folder / graph_file(name)
        ir.save(describe(graph, name, config, sha256), file)
        check_graph(file, contract.inputs, contract.outputs)


def check_graph(path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Refuse a graph that is not valid ONNX, or whose inputs or outputs are not these, in this order.

    Raises:
        ExportError: it is not so.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}") from error
    graph = onnx.load_model(path, load_external_data=False).graph
    for role, found, expected in (("inputs", graph.input, inputs), ("outputs", graph.output, outputs)):
        names = tuple(value.name for value in found)
        if names != expected:
            raise ExportError(f"{path.name} has the {role} {', '.join(names)}; they must be {', '.join(expected)}.")


def _golden_tokens(config: SAEConfig, tokens: int) -> int:
    """Return how many tokens are stored: a few megabytes of them, at least one."""
    # Each with its residual but the input; the two activations that an intervention changes are there twice.
    features, activations = 2 * 2 * config.d_sae, (1 + 2 * (3 + 2)) * config.d_in
    return min(tokens, GOLDEN_TOKENS, max(1, GOLDEN_BYTES // (4 * (features + activations))))


def _prove(folder: Path, path: Path, config: SAEConfig, steered: SteeredReference, golden: GoldenSpec) -> None:
    """Run the graphs against the original, record the result in the manifest, then read it all as a user would."""
    record = ParityRecord("cpu", steered.tokens, {}, {})
    _write_manifest(folder, config, golden, record)
    with SAESession(folder, record.device) as session:
        report = judge_session(session, steered)
    Report(f"{path} was not written: parity is not met", report.verdicts, report.problems).raise_for_failures()
    measured = {(verdict.graph, verdict.hook): verdict.errors for verdict in report.verdicts}
    for graph, reference, hooks in ((MODEL, steered.clean, record.hooks), (STEER, steered, record.steered)):
        for hook, budget in reference.budgets.items():
            artifact = measured[graph, hook]
            assert artifact is not None, hook  # a computed hook without a failure has been measured
            hooks[hook] = HookParity(reference.errors(hook, reference.original[hook]), artifact, budget)
    _write_manifest(folder, config, golden, record)
    verify_golden(folder, record.device).raise_for_failures()


def _prove_checkpoint(sae: Any, folder: Path, reference: Reference) -> None:
    """Make sure that the artifact is its own checkpoint: what is loaded from it computes what was exported."""
    outputs = six_hooks(load(folder), reference.original[HOOK_NAMES[0]])
    verdicts = judge("checkpoint", HOOK_NAMES, outputs, reference)
    if failures := Report("", verdicts).failures:
        raise ExportError(
            f"This {type(sae).__name__} computes something else than the HookedSAE that its artifact would be loaded "
            f"as: {failures[0]} Only the equations of HookedSAE can be exported."
        )


def _write_manifest(folder: Path, config: SAEConfig, golden: GoldenSpec, parity: ParityRecord) -> None:
    graphs = graph_specs(config)
    files = sorted([WEIGHTS, golden.file, *(graph.file for graph in graphs.values())])
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        sae=config,
        weights=WEIGHTS,
        graphs=graphs,
        golden=golden,
        parity=parity,
        provenance=_versions(),
        files={name: record_of(folder / name) for name in files},
    )
    (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")


def _versions() -> dict[str, str]:
    """Return the versions of what made the artifact; never a path, a user's name or a time."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


@contextlib.contextmanager
def _stages(what: str) -> Iterator[Callable[[str], None]]:
    """Show the stages of a long work as a progress bar, on a terminal only."""
    with tqdm(total=STAGES, desc=what, disable=None, leave=False, bar_format="{desc}: {postfix} |{bar}|") as bar:

        def stage(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        yield stage
