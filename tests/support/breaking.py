"""Changes artifacts on purpose, consistently with the format, so that only one check can notice it."""

import hashlib
import json
import math

import numpy as np
import onnx
import pytest

import runtime
from runtime import ParityError
from runtime.artifact.contracts import CONTRACTS
from runtime.commands.main import main
from tests.support.manifests import sealed


def rewrite(folder, name, change):
    """Change a file and its record in the manifest."""
    path = folder / name
    change(path)
    manifest = json.loads((folder / "sae.json").read_text())
    data = path.read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "sae.json").write_bytes(sealed(manifest))


def edit_weight(name, index, factor):
    """Return a function that changes an element in place: graphs refer to weights by their position in the file."""

    def change(path):
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        spec = json.loads(data[8:start])[name]
        dtype = {"F32": np.float32, "F16": np.float16}[spec["dtype"]]
        values = np.frombuffer(data, dtype, math.prod(spec["shape"]), start + spec["data_offsets"][0])
        values.reshape(spec["shape"])[index] *= factor
        path.write_bytes(data)

    return change


def with_weight(name, change):
    """Return an edit that stores a changed weight in a graph, instead of a reference to the weights file."""

    def on_file(path):
        model = onnx.load_model(path)
        for tensor in model.graph.initializer:
            if tensor.name == name:
                values = change(onnx.numpy_helper.to_array(tensor).astype(np.float32))
                kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(kind), name))
        onnx.save_model(model, path)

    return on_file


def claim_weights(folder):
    """Make every graph and the manifest agree with the present weights."""
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()

    def change(path):
        model = onnx.load_model(path, load_external_data=False)
        for entry in model.metadata_props:
            if entry.key == "saeexport.weights_sha256":
                entry.value = digest
        onnx.save_model(model, path)

    for graph in CONTRACTS:
        rewrite(folder, f"{graph}.onnx", change)


def edit_graph(change):
    def on_file(path):
        model = onnx.load_model(path, load_external_data=False)
        change(model)
        onnx.save_model(model, path)

    return on_file


def failures_of(folder, capsys):
    """Return the text of a verification that fails, and check that all three ways to verify agree."""
    report = runtime.verify(folder, "cpu")
    assert report.failures
    with pytest.raises(ParityError) as error:
        runtime.assert_parity(folder, "cpu")
    assert report.failures[0] in str(error.value)
    assert main(["verify", str(folder), "--device", "cpu"]) == 1
    assert report.failures[0] in capsys.readouterr().out
    return "\n".join(report.failures)
