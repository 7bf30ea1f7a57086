"""Writes a model repository for NVIDIA Triton: a model of its ONNX Runtime backend for each graph of an artifact.

    OUT/NAME_GRAPH/config.pbtxt
    OUT/NAME_GRAPH/VERSION/model.onnx/model.onnx
                                     /weights.safetensors
                                     /sae.json

`model.onnx` is a folder, as Triton wants it where a graph keeps its parameters in another file. The copies of the
weights are hard links to one another where the file system has them.

Where `tokens` is the first dimension of every input and output, it is Triton's batch dimension: Triton puts the tokens
of several requests into one batch, and refuses a request with more than `max_batch_size` of them.

Source: https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_repository.md,
https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..arrays.arguments import as_integer, as_path
from ..arrays.dtypes import FLOAT32
from ..artifact.contracts import contracts_of
from ..artifact.folder import Artifact, read_artifact
from ..artifact.manifest import INT8, MANIFEST, TensorSpec
from ..artifact.names import TOKENS
from ..errors import InputError
from .protocol import DATATYPES, dimensions
from .service import Limits

CONFIG = "config.pbtxt"
MODEL_FILE = "model.onnx"
NAME = re.compile(r"[A-Za-z0-9_.-]+")
LARGEST_BATCH = 2**31 - 1
"""Largest `max_batch_size`, which is an int32."""


def write_repository(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    graphs: Sequence[str] | None = None,
    name: str | None = None,
    version: int = 1,
    max_tokens: int = Limits.tokens,
) -> list[Path]:
    """Write graphs of an artifact as models of Triton's ONNX Runtime backend, and return their folders.

    A repository that exists gets further models, or a further version of models that have the same configuration.

    Args:
        path: Folder of the artifact, whose files are checked.
        out: Folder of the repository.
        graphs: Names of graphs; None for those that are written for every device.
        name: Start of the models' names; None for the name of the artifact's folder.
        version: Version of the models.
        max_tokens: Largest number of tokens of a batch.

    Raises:
        ArtifactError: The folder is not an artifact, or one of its files was changed.
        InputError: A graph, a name or a number is not accepted, or the repository has this version, or a model of the
            same name and another configuration.
        OSError: The files cannot be written.
    """
    artifact, out = read_artifact(path), as_path("out", out)
    artifact.check_files()
    contracts = contracts_of(artifact.manifest.sae.dtype)
    if graphs is None:
        graphs = [graph for graph, contract in contracts.items() if not contract.for_cpu]
    if isinstance(graphs, str) or not isinstance(graphs, Sequence):
        raise InputError(f"graphs is {graphs!r}; it must be a list of names, or None for those of every device.")
    if not graphs:
        raise InputError(f"no graphs are given; {path} has {', '.join(artifact.manifest.graphs)}.")
    if unknown := [str(graph) for graph in graphs if graph not in artifact.manifest.graphs]:
        raise InputError(f"{path} has no graph {', '.join(unknown)}; it has {', '.join(artifact.manifest.graphs)}.")
    name = artifact.folder.name if name is None else name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"The name {name!r} must consist of letters, digits, '_', '.' and '-'. Choose another (name=, --name)."
        )
    version = as_integer("version", version, 1)
    configs = {model_name(name, graph): (graph, onnx_config(artifact, graph, name, max_tokens)) for graph in graphs}
    for model, (_, config) in configs.items():
        _check_place(out / model, version, config)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as staging:
        weights: Path | None = None
        for model, (graph, config) in configs.items():
            content = Path(staging) / model / str(version) / MODEL_FILE
            content.mkdir(parents=True)
            (content.parents[1] / CONFIG).write_text(config, "utf-8")
            shutil.copyfile(artifact.file(artifact.manifest.graphs[graph].file), content / MODEL_FILE)
            shutil.copyfile(artifact.folder / MANIFEST, content / MANIFEST)
            weights = _link_or_copy(weights or artifact.file(artifact.manifest.weights), content, linked=bool(weights))
        out.mkdir(exist_ok=True)
        for model in configs:
            staged = Path(staging) / model
            if (out / model).exists():
                (staged / str(version)).rename(out / model / str(version))
            else:
                staged.rename(out / model)
    return [out / model for model in configs]


def model_name(name: str, graph: str) -> str:
    """Return the name of the model of a graph."""
    return f"{name}_{graph.replace('.', '_')}"


def onnx_config(artifact: Artifact, graph: str, name: str, max_tokens: int = Limits.tokens) -> str:
    """Return `config.pbtxt` of the model of a graph.

    Args:
        artifact: The artifact.
        graph: Name of the graph.
        name: Start of the model's name.
        max_tokens: Largest number of tokens of a batch.

    Raises:
        InputError: `max_tokens` is not a positive whole number, or is too large.
    """
    manifest = artifact.manifest
    max_tokens = as_integer("max_tokens", max_tokens, 1, LARGEST_BATCH)
    spec = manifest.graphs[graph]
    batched = all(tensor.shape[0] == TOKENS for tensor in (*spec.inputs, *spec.outputs))
    if contracts_of(manifest.sae.dtype)[graph].for_cpu or manifest.weights_dtype == INT8:
        kind = "KIND_CPU"
    else:  # a CPU does not compute portable graphs in half precision
        kind = "KIND_AUTO" if manifest.sae.dtype == FLOAT32 else "KIND_GPU"
    return config_text(
        model_name(name, graph), "onnxruntime", spec.inputs, spec.outputs, kind, max_tokens if batched else 0
    )


def config_text(
    name: str,
    backend: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    kind: str,
    max_batch_size: int = 0,
    optional: Sequence[str] = (),
    parameters: dict[str, str] | None = None,
) -> str:
    """Return a model configuration of Triton in protobuf's text format.

    Args:
        name: Name of the model.
        backend: Name of the backend, "onnxruntime" or "python".
        inputs: The inputs.
        outputs: The outputs.
        kind: Where it runs: "KIND_CPU", "KIND_GPU" or "KIND_AUTO".
        max_batch_size: Largest batch, for tensors whose first dimension is the batch; 0 if they have none.
        optional: Names of the inputs that a request may leave out.
        parameters: Parameters of the model.
    """

    def tensor(spec: TensorSpec) -> str:
        sizes = dimensions(spec)[1:] if max_batch_size else dimensions(spec)
        may_miss = " optional: true" if spec.name in optional else ""
        dims = ", ".join(map(str, sizes))
        return f"  {{ name: {_quoted(spec.name)} data_type: TYPE_{DATATYPES[spec.dtype]} dims: [ {dims} ]{may_miss} }}"

    lines = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(backend)}",
        f"max_batch_size: {max_batch_size}",
        *(["dynamic_batching { }"] if max_batch_size else []),
        "input [",
        ",\n".join(map(tensor, inputs)),
        "]",
        "output [",
        ",\n".join(map(tensor, outputs)),
        "]",
        f"instance_group [ {{ count: 1 kind: {kind} }} ]",
    ]
    for key, value in (parameters or {}).items():
        lines.append(f"parameters: {{ key: {_quoted(key)} value: {{ string_value: {_quoted(value)} }} }}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _check_place(model: Path, version: int, config: str) -> None:
    """Check that a version of a model can be added.

    Raises:
        InputError: It is there, or the model has another configuration.
    """
    if not model.exists():
        return
    if not (model / CONFIG).is_file() or (model / CONFIG).read_text("utf-8") != config:
        raise InputError(f"{model} exists and has another configuration. Choose another name or folder.")
    if (model / str(version)).exists():
        raise InputError(f"{model} has version {version}. Choose another version, or another folder.")


def _link_or_copy(weights: Path, folder: Path, linked: bool) -> Path:
    """Put the weights into a folder, as a hard link if they are a copy of this module's own, and return their path."""
    target = folder / weights.name
    if linked:
        try:
            os.link(weights, target)
            return weights
        except OSError:  # the file system has no hard links
            pass
    shutil.copyfile(weights, target)
    return target
