"""Where ONNX Runtime places each node of a portable graph on CUDA: no node on the CPU, and no copies in between.

A session for CUDA refuses nodes on the CPU, and a CUDA graph with copies between CPU and GPU cannot be captured. The
placement can be computed without a GPU: a node goes to the CPU if all of its inputs are there already, unless its CUDA
kernel reads them from there.

Source: GetCpuPreferredNodes of onnxruntime/core/framework/fallback_cpu_capability.cc, and the kernels' InputMemoryType.
"""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from runtime.artifact.contracts import PORTABLE
from saeexport import export
from saeexport.original.architectures import ARCHITECTURES
from tests.support.samples import MINILM, TINY, make_sae, normal

READ_BY_THE_HOST = {"Reshape": {1}, "Expand": {1}, "TopK": {1}, "Squeeze": {1}, "Unsqueeze": {1}, "Slice": {1, 2, 3, 4},
                    "ReduceMax": {1}, "ReduceMin": {1}, "ReduceSum": {1}, "ReduceMean": {1}, "Range": {0, 1, 2},
                    "ConstantOfShape": {0}, "Tile": {1}, "Pad": {1, 2, 3}, "Split": {1}}  # fmt: skip
MADE_BY_THE_HOST = {"Shape", "Size"}
SMALL = 100  # constants with at most so many elements count as being on both
HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def placement(model):
    """Return the nodes placed on the CPU, and the values that are copied between CPU and GPU."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    nodes = list(graph.node)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    small = {tensor.name for tensor in graph.initializer if math.prod(tensor.dims) <= SMALL}
    given = {value.name for value in graph.input}
    on_host = {output for node in nodes if node.op_type in MADE_BY_THE_HOST for output in node.output}
    on_cpu = []
    for i, node in enumerate(nodes):  # in order, so that the nodes before it are placed
        inputs = [name for name in node.input if name]
        from_host = [name for name in inputs if name in on_host]
        if from_host and all(
            kinds.get(name) not in HALF
            and (name in small | given or (name in on_host and place not in READ_BY_THE_HOST.get(node.op_type, ())))
            for place, name in enumerate(inputs)
        ):
            on_cpu.append(i)
            on_host |= set(node.output)
    wanted = {True: set(), False: set()}  # by whether the host reads them
    for i, node in enumerate(nodes):
        for place, name in enumerate(node.input):
            wanted[i in on_cpu or place in READ_BY_THE_HOST.get(node.op_type, ())].add(name)
    made = {output for node in nodes for output in node.output}
    copied = (on_host & wanted[False]) | ((made - on_host) & wanted[True]) | (given & wanted[True] & wanted[False])
    return [nodes[i].name or nodes[i].op_type for i in on_cpu], sorted(copied)


def assert_all_on_cuda(path):
    for graph in PORTABLE:
        model = onnx.load(path / f"{graph}.onnx", load_external_data=False)
        assert placement(model) == ([], []), graph


@pytest.mark.parametrize("path", [TINY, MINILM], ids=["tiny", "minilm"])
def test_the_artifacts_of_the_repository(path):
    assert_all_on_cuda(path)


NORMALIZED = [("topk", {"normalize_activations": how}) for how in ("layer_norm", "constant_norm_rescale")]


WITH_ERROR = [(name, {"use_error_term": True}) for name in ARCHITECTURES]


@pytest.mark.parametrize(("architecture", "more"), [*WITH_ERROR, *NORMALIZED], ids=str)
def test_every_architecture(architecture, more, artifact_of):
    assert_all_on_cuda(artifact_of(architecture, **more).path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "topk"])
def test_half_precision(architecture, dtype, artifact_of):
    assert_all_on_cuda(artifact_of(architecture, dtype, use_error_term=True).path)


def test_heads(tmp_path):
    sae = make_sae(d_in=12, hook_name="blocks.0.attn.hook_z")
    assert_all_on_cuda(export(sae, tmp_path / "sae", normal(20, 3, 4), head_shape=(3, 4)).path)


def test_arithmetic_on_shapes_and_inputs_read_by_both_are_detected():
    x, k = (helper.make_tensor_value_info(n, kind, ["n"]) for n, kind in (("x", 1), ("k", 7)))
    y, z = (helper.make_tensor_value_info(n, 7, ["m"]) for n in "yz")
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "two"], ["y"], name="Doubled"),
        helper.make_node("TopK", ["x", "k"], ["values", "z"]),
        helper.make_node("Min", ["k", "y"], ["w"]),
    ]
    two = onnx.numpy_helper.from_array(np.array(2), "two")
    model = helper.make_model(helper.make_graph(nodes, "g", [x, k], [y, z], [two]))
    on_cpu, copied = placement(model)
    assert on_cpu == ["Doubled", "Min"]
    assert copied == []
    del model.graph.node[1]
    model.graph.node[2].input[1] = "z"
    assert placement(model) == ([], ["k"])
