"""Exports a HookedSAE to an artifact.

The SAE is traced, the graphs and weights are written to a temporary folder, their parity is proved there, and only then
does the folder take its final name.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from runtime.arrays.arguments import as_path
from runtime.arrays.dtypes import FLOAT32
from runtime.artifact.budgets import MIN_COLUMN_TOKENS
from runtime.artifact.folder import Artifact, read_artifact
from runtime.artifact.labels import LABELS, Labels
from runtime.artifact.manifest import FORMAT_VERSION, INT8, GoldenSpec, GraphSpec, Manifest, SAEConfig
from runtime.artifact.tensorfile import TensorWriter
from runtime.errors import ExportError, InputError
from runtime.parity.golden import save_golden
from runtime.parity.reference import Reference

from .checkpoints.memory import convert_if_needed
from .graphs.write import quantize_weights, trace_model, write_graphs
from .labels import load_labels
from .original.dtypes import DTypeLike
from .original.exportable import check_functions, check_hooks, check_tensors, check_weights, config_of, in_dtype
from .original.forward import check_edits, check_forward
from .original.hooked_sae import HookedSAE
from .original.running import dtype_of, to_bits
from .original.selection import select_features, select_labels
from .proof.activations import check_features, prepare_activations
from .proof.prove import prove, prove_checkpoint, record_fidelity
from .proof.truth import for_tf32, reference_of, run_in_tf32, steered_reference_of, typical_intervention
from .staging import check_output_folder, explained_errors, staged_folder
from .versions import package_versions

WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
STAGES = 4
BLOCK_BYTES = 16 << 20  # bytes of weights that are copied at a time while they are written
GOLDEN_TOKENS, GOLDEN_BYTES = 64, 6 << 20


def export(
    sae: Any,
    path: str | os.PathLike[str],
    activations: Any = None,
    head_shape: tuple[int, int] | None = None,
    *,
    targets: Any = None,
    dtype: DTypeLike | None = None,
    weights: str | None = None,
    labels: Labels | str | os.PathLike[str] | None = None,
    features: Any = None,
    overwrite: bool = False,
) -> Artifact:
    """Export a HookedSAE to the folder `path` as a verified artifact, and return the artifact.

    The same SAE, activations and package versions give the same bytes. If the export fails, no files are left behind
    and an artifact that was at `path` before is unchanged.

    Args:
        sae: HookedSAE without hook functions; an SAE of another library that `convert` takes; or a custom
            HookedRootModule with the same six hooks.
        path: Folder to write. It must not exist unless `overwrite` is set; missing parents are created.
        activations: Real inputs, `(..., d_in)` or `(..., n_heads, d_head)`, as a numpy array or tensor. Parity is
            proved on a sample of them, and a part of the sample is stored as the golden batch. None draws random
            inputs, which the manifest records as synthetic.
        head_shape: `(n_heads, d_head)` for graphs that take `(tokens, n_heads, d_head)`; None for `(tokens, d_in)`.
            `runtime` accepts both shapes either way.
        targets: Activations that a transcoder with the error term predicts, `(..., d_out)`, one for each of
            `activations`.
        dtype: Dtype of weights and activations: float32, float16 or bfloat16, given as a name, a `torch.dtype` or a
            numpy dtype. None keeps the SAE's own. If it differs, a converted copy of the SAE is exported; for half
            precision the manifest also records what the conversion loses (`runtime.parity.fidelity`). Load a checkpoint
            in half precision with `dtype="float32"` before, so that what is folded into its weights is rounded once.
        weights: None keeps the weights as they are. "int8" makes the file four times smaller and the CPU faster on few
            tokens, but the artifact is not at parity: the manifest records what is lost. Keep the checkpoint, because
            an SAE cannot be loaded back from int8 weights.
        labels: Labels of the features, or a file that `saeexport.load_labels` reads. They are stored as `labels.json`.
            None takes those of a HookedSAE that `load` read from an artifact, `sae.labels`; `Labels(d_sae)` has none.
        features: Ids of the features to export, a list or an array; None for all. The artifact is an SAE of its own
            that consists of these features (`select_features`), for guardrails and probes: a few kilobytes for each.
            The manifest has their ids (`cfg.feature_ids`). `labels` are those of the whole SAE. Give `activations` on
            which some of the features are on.
        overwrite: Whether to replace an artifact at `path`.

    Raises:
        CheckpointError: An SAE of another library cannot be converted.
        ExportError: The SAE cannot be exported, or the folder cannot be written.
        InputError: The activations do not fit the SAE.
        ParityError: The graphs do not compute what the SAE computes.
    """
    path = as_path("path", path)
    sae = convert_if_needed(sae, dtype)
    check_hooks(sae)
    check_tensors(sae)
    check_functions(sae)
    if labels is None and isinstance(sae, HookedSAE):
        labels = sae.labels
    if features is not None:
        labels = None if labels is None else select_labels(_as_labels(labels, sae.cfg.d_sae), features)
        sae = select_features(sae, features)
    given, sae = sae, in_dtype(sae, dtype)
    check_weights(sae.state_dict())
    check_output_folder(path, overwrite)
    config = config_of(sae, head_shape)
    if weights not in (None, config.dtype, INT8) or (weights == INT8 and config.dtype != FLOAT32):
        raise ExportError(
            f"weights is {weights!r} and the SAE is in {config.dtype}; weights must be None, to keep them as they are, "
            f"or {INT8!r}, for an SAE in {FLOAT32}."
        )
    labels = None if labels is None else _as_labels(labels, config.d_sae)
    check_forward(sae, config)
    batch, target = prepare_activations(sae, config, activations, targets)
    check_edits(sae, config, batch, target)
    with (
        explained_errors(path, ExportError),
        staged_folder(path, overwrite) as folder,
        _stages(f"exporting {path.name}") as stage,
    ):
        stage("tracing")
        model = trace_model(sae, config)
        stage("writing graphs and weights")
        state = sae.state_dict()
        if weights == INT8:
            state = quantize_weights(model, state)
        _write_weights(state, folder / WEIGHTS)
        if labels:
            (folder / LABELS).write_text(labels.to_json(), "utf-8")
        graphs = write_graphs(model, config, folder / WEIGHTS)
        stage("running the original in its dtype and in float64")
        clean = reference_of(sae, batch, target)
        check_features(clean, activations is not None)
        steered = steered_reference_of(sae, clean, typical_intervention(clean))
        tf32 = run_in_tf32(sae, steered) if config.dtype == FLOAT32 and weights != INT8 else None
        source = "synthetic" if activations is None else "activations"
        golden = GoldenSpec(GOLDEN, _golden_tokens(config, clean.tokens), source)
        judged_in_tf32 = None if tf32 is None else for_tf32(sae, steered, tf32).clean
        save_golden(steered, golden.tokens, str(folder / GOLDEN), judged_in_tf32)
        read = sae.provenance if isinstance(sae, HookedSAE) else {}
        manifest = _manifest(config, weights or config.dtype, graphs, golden, read)
        if weights == INT8:
            stage("measuring fidelity")
            record_fidelity(folder, path, manifest, steered)
        else:
            stage("proving parity")
            prove(
                folder, path, manifest, steered, tf32,
                _float32_reference(given, sae, config, head_shape, activations, targets),
            )  # fmt: skip
            prove_checkpoint(sae, folder, clean)
    return read_artifact(path)


def _as_labels(labels: Labels | str | os.PathLike[str], d_sae: int) -> Labels:
    """Return the labels of the features, read from their file if a path is given."""
    if not isinstance(labels, Labels):
        return load_labels(labels, d_sae)
    if labels.d_sae != d_sae:
        raise InputError(f"The labels are those of {labels.d_sae} features, and the SAE has {d_sae}.")
    return labels


def _float32_reference(
    given: Any, sae: Any, config: SAEConfig, head_shape: tuple[int, int] | None, activations: Any, targets: Any
) -> Reference | None:
    """Return the reference of the SAE before its conversion to half precision; None if it was not float32 before."""
    if given is sae or config.dtype == FLOAT32 or {dtype_of(weight) for weight in given.parameters()} != {FLOAT32}:
        return None
    return reference_of(given, *prepare_activations(given, config_of(given, head_shape), activations, targets))


def _write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write the weights file in blocks of rows, so that a matrix that is a transposed view is never copied whole."""
    ordered = dict(sorted(state.items(), key=_with_its_bias))
    with path.open("wb") as file:
        writer = TensorWriter(file, {name: (tuple(t.shape), dtype_of(t)) for name, t in ordered.items()})
        for name, tensor in ordered.items():
            array = to_bits(tensor if tensor.ndim else tensor.reshape(1))  # a custom class may have a scalar
            rows = max(1, BLOCK_BYTES // (array.nbytes // max(len(array), 1) or 1))
            for start in range(0, len(array), rows):
                writer.write(name, start, array[start : start + rows])


def _with_its_bias(item: tuple[str, Tensor]) -> tuple[int, str, str]:
    """Return the sort key that puts each bias right after its matrix, which `passes/bias.py` needs, and int8 last."""
    name, tensor = item
    kind, _, of = name.partition("_")
    return (-tensor.element_size(), *((of, kind) if of else ("~", kind)))


def _golden_tokens(config: SAEConfig, tokens: int) -> int:
    """Return the number of tokens in the golden batch: a few megabytes, and in half precision enough for columns."""
    # Every tensor but the input is stored with its residual, and those that an intervention changes are stored twice.
    features, activations = 2 * 2 * config.d_sae, (1 + 2 * (3 + 2)) * config.d_in
    least = 1 if config.dtype == FLOAT32 else MIN_COLUMN_TOKENS
    return min(tokens, GOLDEN_TOKENS, max(least, GOLDEN_BYTES // (4 * (features + activations))))


def _manifest(
    config: SAEConfig, weights: str, graphs: dict[str, GraphSpec], golden: GoldenSpec, read: dict[str, str]
) -> Manifest:
    """Return the manifest without its parity record and checksums, which are added later.

    Args:
        read: How the checkpoint was read, which becomes part of the provenance.
    """
    return Manifest(FORMAT_VERSION, config, WEIGHTS, weights, graphs, golden, None, None, package_versions() | read, {})


_shared_bar: ContextVar["tqdm[Any] | None"] = ContextVar("shared_bar", default=None)


@contextlib.contextmanager
def stages_in(bar: "tqdm[Any]") -> Iterator[None]:
    """Show the stages of the exports in the block behind a progress bar, instead of a bar for each."""
    token = _shared_bar.set(bar)
    try:
        yield
    finally:
        _shared_bar.reset(token)


@contextlib.contextmanager
def _stages(title: str) -> Iterator[Callable[[str], None]]:
    """Show the stages of an export as a progress bar if stderr is a terminal."""
    if (shared := _shared_bar.get()) is not None:
        yield shared.set_postfix_str
        return
    with tqdm(total=STAGES, desc=title, disable=None, leave=False, bar_format="{desc}: {postfix} |{bar}|") as bar:

        def stage(name: str) -> None:
            bar.set_postfix_str(name)
            bar.update()

        yield stage
