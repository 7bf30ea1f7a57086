"""Checks that the file of a graph is what the manifest says: its weights, its inputs and its outputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arrays.dtypes import DTYPES
from ..artifact.contracts import WEIGHTS_KEY
from ..artifact.digests import digest_values
from ..artifact.folder import Artifact
from ..artifact.held import read_graph
from ..artifact.interface import read_interface
from ..artifact.manifest import MANIFEST, Manifest, TensorSpec
from ..artifact.onnxfile import not_onnx
from ..artifact.protobuf import UNREADABLE
from ..devices.staged import StagedSession
from ..errors import IntegrityError

ONNX_TYPES = {"tensor(bool)": "bool", **{f"tensor({dtype.onnx_name})": name for name, dtype in DTYPES.items()}}


def check_unloaded(artifact: Artifact, graph: str) -> None:
    """Check what the file of a graph that this device cannot load says about its weights, inputs and outputs.

    Raises:
        ArtifactError: The file is not ONNX.
        IntegrityError: It was exported for other weights, or has other inputs or outputs than the manifest says.
    """
    manifest = artifact.manifest
    held = read_graph(artifact.open, manifest.files, manifest.graphs[graph].file, MANIFEST, check=True)
    try:
        described = StagedSession(read_interface(held.content), ())
        digest_values(held.content, {})  # reads every operator
    except UNREADABLE as error:
        raise not_onnx(held.path, error) from None
    check_loaded(manifest, graph, described, held.path)


def check_loaded(manifest: Manifest, graph: str, session: Any, path: Path) -> None:
    """Check that a graph was exported for these weights, and that its inputs and outputs are those of the manifest.

    Raises:
        IntegrityError: They are not; the message has the path of the file.
    """
    try:
        metadata = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} has metadata that is not text. Copy the whole folder again.") from error
    weights = metadata.get(WEIGHTS_KEY)
    if weights != manifest.files[manifest.weights].sha256:
        raise IntegrityError(f"{path} was exported for other weights (sha256 {weights}). Copy the whole folder again.")
    spec = manifest.graphs[graph]
    check_tensors(path, "inputs", session.get_inputs(), spec.inputs)
    check_tensors(path, "outputs", session.get_outputs(), spec.outputs)


def check_tensors(path: Path, role: str, found: Sequence[Any], expected: Sequence[TensorSpec]) -> None:
    """Check that the inputs or the outputs of a session are those that the manifest describes, in the same order.

    Args:
        path: Path of the graph, for the message.
        role: "inputs" or "outputs".
        found: What ONNX Runtime says about them.
        expected: What the manifest says.

    Raises:
        IntegrityError: They are not.
    """
    try:
        tensors = tuple(_tensor_spec(tensor) for tensor in found)
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path} has {role} with names that are not text. Copy the whole folder again.") from error
    if tensors != tuple(expected):
        raise IntegrityError(f"{path} has the {role} {_describe(tensors)}, the manifest {_describe(expected)}.")


def _tensor_spec(argument: Any) -> TensorSpec:
    """Return the manifest's description of an input or output that ONNX Runtime describes."""
    return TensorSpec(argument.name, ONNX_TYPES.get(argument.type, argument.type), tuple(argument.shape))


def _describe(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.dtype} {list(tensor.shape)}" for tensor in tensors)
