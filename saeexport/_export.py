"""Export: trace the SAE, rewrite its graph, write the artifact, verify it, and only then put it in its place."""

import contextlib
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from runtime.arrays.dtypes import FLOAT32
from runtime.artifact.folder import Artifact, read_artifact
from runtime.artifact.manifest import FORMAT_VERSION, INT8, GoldenSpec, GraphSpec, Manifest, SAEConfig
from runtime.artifact.tensorfile import TensorWriter
from runtime.errors import ExportError
from runtime.parity.golden import save_golden
from runtime.parity.reference import Reference

from .graphs.write import state_in_int8, traced, write_graphs
from .original.exportable import check_hooks, check_weights, config_of, in_dtype
from .original.running import bits_of, dtype_of
from .proof.activations import prepare_activations
from .proof.prove import prove, prove_checkpoint, record_fidelity
from .proof.truth import in_tf32, reference_of, steered_reference_of, typical_intervention
from .staging import check_target, staged_folder

WEIGHTS = "weights.safetensors"
GOLDEN = "golden.safetensors"
STAGES = 4
BLOCK_BYTES = 16 << 20  # of weights in memory at a time while they are written
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
    targets: Any = None,
    dtype: str | None = None,
    weights: str | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Write a HookedSAE to the folder `path` as a verified artifact, and return it.

    The same SAE, activations and versions give the same bytes. If anything fails nothing is left behind, and what was
    at `path` before is still there.

    Args:
        sae: a HookedSAE, no hook functions attached.
        path: a folder that does not exist yet; its parent is made if need be.
        activations: numpy array or tensor of real inputs, `(..., d_in)` or `(..., n_heads, d_head)`. The proof is made
            on a sample of them and a part of it is stored. None draws random ones, and the manifest calls them
            synthetic.
        head_shape: (n_heads, d_head), for graphs that take `(tokens, n_heads, d_head)`; None for `(tokens, d_in)`.
            `runtime` takes both from either.
        targets: for a transcoder with the error term, the activations that it predicts, `(..., d_out)`, one for each
            of `activations`.
        dtype: "float32", "float16" or "bfloat16"; None for the SAE's own. In another one the original is a copy that
            is converted, and the manifest also says what half precision loses (`runtime.parity.fidelity`).
        weights: None for those of the SAE, or "int8" for small machines: a quarter of the bytes, faster for a few
            tokens on a CPU, and no parity: the manifest says what is lost. Keep the original, it cannot be loaded back.
        overwrite: replace an artifact that is at `path`.

    Raises:
        ExportError: the SAE cannot be exported, or the folder cannot be written.
        InputError: the activations do not fit the SAE.
        ParityError: the graphs do not compute what the SAE computes.
    """
    path = Path(path)
    check_hooks(sae)
    given, sae = sae, in_dtype(sae, dtype)
    check_weights(sae.state_dict())
    check_target(path, overwrite)
    config = config_of(sae, head_shape)
    if weights not in (None, config.dtype, INT8) or (weights == INT8 and config.dtype != FLOAT32):
        raise ExportError(
            f"weights is {weights!r} and the SAE in {config.dtype}; weights may be None, the SAE's own, or {INT8!r} of "
            f"one in {FLOAT32}."
        )
    batch, target = prepare_activations(sae, config, activations, targets)
    try:
        with staged_folder(path, overwrite) as folder, _stages(f"exporting {path.name}") as stage:
            stage("tracing")
            model = traced(sae, config)
            stage("writing graphs and weights")
            state = sae.state_dict()
            if weights == INT8:
                state = state_in_int8(model, state)
            _write_weights(state, folder / WEIGHTS)
            graphs = write_graphs(model, config, folder / WEIGHTS)
            stage("running the original, and in float64")
            clean = reference_of(sae, batch, target)
            steered = steered_reference_of(sae, clean, typical_intervention(clean))
            tf32 = in_tf32(sae, steered) if config.dtype == FLOAT32 and weights != INT8 else None
            source = "synthetic" if activations is None else "activations"
            golden = GoldenSpec(GOLDEN, _golden_tokens(config, clean.tokens), source)
            save_golden(steered, golden.tokens, str(folder / GOLDEN), None if tf32 is None else tf32.clean)
            manifest = _manifest(config, weights or config.dtype, graphs, golden)
            if weights == INT8:
                stage("measuring fidelity")
                record_fidelity(folder, path, manifest, steered)
            else:
                stage("proving parity")
                prove(
                    folder, path, manifest, steered, tf32, _exact(given, sae, config, head_shape, activations, targets)
                )
                prove_checkpoint(sae, folder, clean)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path} was not written: {error}") from error
    return read_artifact(path)


def _exact(
    given: Any, sae: Any, config: SAEConfig, head_shape: tuple[int, int] | None, activations: Any, targets: Any
) -> Reference | None:
    """Return the float32 original of an artifact in half precision, on the activations as they were; if it was one."""
    if given is sae or config.dtype == FLOAT32 or {dtype_of(weight) for weight in given.parameters()} != {FLOAT32}:
        return None
    return reference_of(given, *prepare_activations(given, config_of(given, head_shape), activations, targets))


def _write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write the weights file, a block of rows at a time: a matrix that is a transposed view is never held twice."""
    ordered = dict(sorted(state.items(), key=_with_its_bias))
    with path.open("wb") as file:
        writer = TensorWriter(file, {name: (tuple(t.shape), dtype_of(t)) for name, t in ordered.items()})
        for name, tensor in ordered.items():
            array = bits_of(tensor if tensor.ndim else tensor.reshape(1))  # a user's scalar
            rows = max(1, BLOCK_BYTES // (array.nbytes // max(len(array), 1) or 1))
            for start in range(0, len(array), rows):
                writer.write(name, start, array[start : start + rows])


def _with_its_bias(item: tuple[str, Tensor]) -> tuple[int, str, str]:
    """Sort W_dec, b_dec, W_enc, b_enc, others: a bias lies behind its matrix, see `passes/bias.py`; bytes come last."""
    name, tensor = item
    kind, _, of = name.partition("_")
    return (-tensor.element_size(), *((of, kind) if of else ("~", kind)))


def _golden_tokens(config: SAEConfig, tokens: int) -> int:
    """Return how many tokens are stored: a few megabytes of them, at least one."""
    # Each with its residual but the input; the two activations that an intervention changes are there twice.
    features, activations = 2 * 2 * config.d_sae, (1 + 2 * (3 + 2)) * config.d_in
    return min(tokens, GOLDEN_TOKENS, max(1, GOLDEN_BYTES // (4 * (features + activations))))


def _manifest(config: SAEConfig, weights: str, graphs: dict[str, GraphSpec], golden: GoldenSpec) -> Manifest:
    """Return the manifest, still without the proof and the files."""
    return Manifest(FORMAT_VERSION, config, WEIGHTS, weights, graphs, golden, None, None, _versions(), {})


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
