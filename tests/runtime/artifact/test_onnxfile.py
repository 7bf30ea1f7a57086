"""Which parameters a graph keeps in the weights file: compared with the package onnx, and with damaged files."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx.external_data_helper import uses_external_data

from runtime import ArtifactError, IntegrityError, SAESession, read_artifact
from runtime.artifact.contracts import CONTRACTS
from runtime.artifact.held import HeldFiles
from runtime.artifact.onnxfile import external_tensors, parameters
from tests.support.breaking import edit_graph, rewrite
from tests.support.samples import TINY, normal

PATH = TINY / "model.onnx"


@pytest.mark.parametrize("graph", CONTRACTS)
def test_it_reads_what_onnx_reads(graph):
    path = TINY / f"{graph}.onnx"
    found = external_tensors(path.read_bytes(), path)
    stored = [t for t in onnx.load(path, load_external_data=False).graph.initializer if uses_external_data(t)]
    assert set(found) == {tensor.name for tensor in stored}
    for tensor in stored:
        where = {entry.key: entry.value for entry in tensor.external_data}
        mine = found[tensor.name]
        assert (mine.element_type, mine.shape) == (tensor.data_type, tuple(tensor.dims))
        assert (mine.location, mine.offset, mine.nbytes) == (
            where["location"], int(where["offset"]), int(where["length"])
        )  # fmt: skip


def test_the_values_are_those_of_the_weights():
    files = HeldFiles(read_artifact(TINY))
    with SAESession(TINY, "cpu") as session:
        found = files.parameters("decode")
        assert (found["W_dec"].array == session.W_dec).all()
        assert not found["W_dec"].array.flags.writeable
    files.close()


def test_shapes_that_are_packed_or_not():
    content = bytes([TensorProto.FLOAT])

    def model(dims):
        tensor = dims + bytes([0x10]) + content + b"\x42\x01w" + b"\x70\x01"
        for key, value in ((b"location", b"f"), (b"offset", b"0"), (b"length", b"24")):
            entry = bytes([0x0A, len(key)]) + key + bytes([0x12, len(value)]) + value
            tensor += bytes([0x6A, len(entry)]) + entry
        graph = bytes([0x2A, len(tensor)]) + tensor
        return bytes([0x3A, len(graph)]) + graph

    for dims in (b"\x08\x02\x08\x03", b"\x0a\x02\x02\x03"):
        assert external_tensors(model(dims), PATH)["w"].shape == (2, 3)
        assert onnx.load_from_string(model(dims)).graph.initializer[0].dims == [2, 3]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content):
    with contextlib.suppress(ArtifactError):
        external_tensors(content, PATH)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255), st.sampled_from(["model", "acts", "model.sparse"]))
def test_a_changed_byte_is_read_as_onnx_reads_it_or_refused(position, byte, graph):
    content = bytearray((TINY / f"{graph}.onnx").read_bytes())
    content[position % len(content)] = byte
    weights = HeldFiles(read_artifact(TINY)).weights
    try:
        found = parameters(bytes(content), PATH, {"weights.safetensors": weights.map()})
    except ArtifactError:
        return
    for parameter in found.values():
        assert parameter.array.nbytes <= weights.size


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "location",
            "../weights.safetensors",
            "model.onnx keeps W_enc in '../weights.safetensors', and not in",
        ),
        ("location", "sae.json", "model.onnx keeps W_enc in 'sae.json', and not in weights.safetensors"),
        ("offset", "1000000", "says that W_enc is bytes 1000000 to 1000384 of a file with"),
        ("offset", "-8", "is not an ONNX model: ValueError: W_enc: offset -8"),
        ("length", "380", r"says that W_enc is \(6, 16\) of the ONNX type 1 in 380 bytes"),
        ("length", "many", "is not an ONNX model: ValueError"),
    ],
)
def test_a_graph_that_refers_to_other_bytes_is_refused(artifact, key, value, message):
    def change(model):
        (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == "W_enc"]
        (entry,) = [entry for entry in tensor.external_data if entry.key == key]
        entry.value = value

    rewrite(artifact, "model.onnx", edit_graph(change))
    with (
        SAESession(artifact, "cpu", graphs="portable") as session,
        pytest.raises(ArtifactError, match=message) as caught,
    ):
        session(normal(6))
    assert isinstance(caught.value, IntegrityError) == ("ValueError" not in message)


def test_a_dtype_without_an_array_is_refused(artifact):
    def change(model):
        for tensor in model.graph.initializer:
            if tensor.name == "W_enc":
                tensor.data_type = TensorProto.FLOAT8E4M3FN

    rewrite(artifact, "model.onnx", edit_graph(change))
    with SAESession(artifact, "cpu", graphs="portable") as session, pytest.raises(IntegrityError, match="ONNX type 17"):
        session(normal(6))


def test_a_mask_of_booleans_may_be_a_parameter():
    tensor = helper.make_tensor("mask", TensorProto.BOOL, [2], b"\1\0", raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "f"), ("offset", "1"), ("length", "2")):
        tensor.external_data.add(key=key, value=value)
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    (mask,) = parameters(model, PATH, {"f": np.array([7, 1, 0], np.uint8)}).values()
    assert mask.array.tolist() == [True, False]
