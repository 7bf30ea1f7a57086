"""Portable graphs use only operators that TensorRT and ONNX Runtime run; anything else is named."""

import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as internals

from runtime.artifact.contracts import ACTIVATE, DECODE, ENCODE, MODEL, STEER
from runtime.artifact.folder import read_artifact
from saeexport import ExportError, HookedSAE, export
from saeexport.graphs import portable
from saeexport.graphs.portable import IR_VERSION, OPERATORS, OPSET, violations
from tests.support.samples import MINILM, TINY, make_sae, normal
from tests.support.zoo import CASES

FOR_TENSORRT = (MODEL, ENCODE, ACTIVATE, DECODE, STEER)
WITH_EVERY_HOOK = [
    (name, more) for name, more in CASES if more.get("use_error_term") and (len(more) == 1 or name == "standard")
]


def found_in(path):
    """Return the violations of each graph."""
    specs = read_artifact(path).manifest.graphs
    return {graph: found for graph in FOR_TENSORRT if (found := violations(path / specs[graph].file))}


@pytest.mark.parametrize(("architecture", "more"), WITH_EVERY_HOOK, ids=str)
def test_every_architecture_is_portable(artifact_of, architecture, more):
    assert found_in(artifact_of(architecture, **more).path) == {}


def test_heads_are_portable(exported_z):
    assert found_in(exported_z[1]) == {}


@pytest.mark.parametrize("path", [TINY, MINILM], ids=lambda path: path.name)
def test_the_models_here_are_portable(path):
    assert found_in(path) == {}


def test_cpu_variants_and_int8_graphs_are_not_portable(tmp_path):
    path = export(make_sae(d_in=64, d_sae=128), tmp_path / "sae", normal(50, 64), weights="int8").path
    assert any("MatMulNBits" in what and "com.microsoft" in what for what in violations(path / "model.onnx"))
    assert any("no control flow" in what for what in violations(TINY / "model.sparse.onnx"))


@pytest.fixture
def file_of(tmp_path):
    """Return a function that writes a graph from x, [n, 4], to y, and returns its file."""

    def write(*nodes, dtype=TensorProto.FLOAT, output=None, ir_version=IR_VERSION, opset=OPSET, constants=(), rank=2):
        shape = ["n"] + [4] * (rank - 1)
        x = helper.make_tensor_value_info("x", dtype, shape)
        y = helper.make_tensor_value_info("y", output or dtype, shape)
        graph = helper.make_graph(nodes, "graph", [x], [y], initializer=constants)
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in nodes} - {""})]
        path = tmp_path / "graph.onnx"
        onnx.save_model(helper.make_model(graph, opset_imports=imports, ir_version=ir_version), path)
        return path

    return write


def node(operator, *inputs, outputs=("y",), **attributes):
    return helper.make_node(operator, inputs or ["x"], outputs, name=f"the_{operator}", **attributes)


def constant(name, *values):
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], values)


def test_a_portable_graph_has_no_violations(file_of):
    assert violations(file_of(node("Relu"))) == []
    four = helper.make_tensor("four", TensorProto.FLOAT, [], [4.0])
    assert violations(file_of(node("Clip", "x", "", "four"), constants=[four])) == []  # an input may be left out


@pytest.mark.parametrize(
    ("change", "words"),
    [({"opset": 19}, "it has opset 19, not 20"), ({"ir_version": 9}, "it has IR version 9, not 10")],
)
def test_another_opset_or_ir_is_named(file_of, change, words):
    assert violations(file_of(node("Relu"), **change)) == [words]


def test_control_flow_is_named(file_of):
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["goes"]), helper.make_node("Relu", ["before"], ["after"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("going", TensorProto.BOOL, []),
            value("before", TensorProto.FLOAT, None),
        ],
        [value("goes", TensorProto.BOOL, []), value("after", TensorProto.FLOAT, None)],
    )
    path = file_of(node("Loop", "times", "", "x", body=body), constants=[helper.make_tensor("times", 7, [], [3])])
    assert violations(path) == [
        "Loop (the_Loop) is not in the list of operators",
        "Loop (the_Loop) has a graph inside: no control flow",
    ]


def test_an_operator_of_another_domain_is_named(file_of):
    assert violations(file_of(node("FastGelu", domain="com.microsoft"))) == [
        "it uses the operators of com.microsoft",
        "FastGelu (the_FastGelu) is an operator of com.microsoft",
    ]


def test_a_type_that_an_engine_lacks_is_named(file_of):
    product = node("Einsum", equation="ij->ij")
    for dtype in (TensorProto.FLOAT, TensorProto.FLOAT16):
        assert violations(file_of(product, dtype=dtype)) == []
    assert violations(file_of(product, dtype=TensorProto.BFLOAT16)) == [
        "Einsum (the_Einsum) has x in BFLOAT16",
        "Einsum (the_Einsum) has y in BFLOAT16",
    ]
    compared = file_of(node("Greater", "x", "x"), dtype=TensorProto.BFLOAT16, output=TensorProto.BOOL)
    assert violations(compared) == ["Greater (the_Greater) has x in BFLOAT16"] * 2
    assert violations(file_of(node("Relu"), dtype=TensorProto.DOUBLE))[0] == "Relu (the_Relu) has x in DOUBLE"


def test_a_type_that_cannot_be_inferred_is_named(file_of):
    path = file_of(node("Mystery", domain="mine", outputs=["m"]), node("Relu", "m"))
    assert "Relu (the_Relu) has m, of a type that cannot be inferred" in violations(path)


def test_too_many_dimensions_are_named(file_of):
    assert violations(file_of(node("Relu"), rank=8)) == []
    assert violations(file_of(node("Relu"), rank=9)) == [f"{name} has more than 8 dimensions" for name in "xy"]


def test_axes_that_are_computed_are_named(file_of):
    sums = node("ReduceSum", "x", "axes", keepdims=1)
    assert violations(file_of(sums, constants=[constant("axes", 1)])) == []
    given = node("Constant", outputs=["axes"], value=constant("", 1))
    given.ClearField("input")
    assert violations(file_of(given, sums)) == []
    doubled = [node("Add", "half", "half", outputs=["axes"]), sums]
    (what,) = violations(file_of(*doubled, constants=[constant("half", 1)]))
    assert what == "ReduceSum (the_ReduceSum) computes axes, which must be a constant"


def test_attributes_that_tensorrt_lacks_are_named(file_of):
    top = {"outputs": ["y", "i"]}
    k, indices = constant("k", 4), helper.make_tensor("at", TensorProto.INT64, [1, 1], [0])
    one = helper.make_tensor("one", TensorProto.FLOAT, [1, 1], [1.0])
    for allowed in (node("TopK", "x", "k", **top), node("ScatterElements", "x", "at", "one", reduction="none")):
        assert violations(file_of(allowed, constants=[k, indices, one])) == []
    (what,) = violations(file_of(node("TopK", "x", "k", sorted=0, **top), constants=[k]))
    assert what == "TopK (the_TopK) has the sorted 0"
    (what,) = violations(file_of(node("TopK", "x", "k", **top), constants=[constant("k", 3840)]))
    assert what == "TopK (the_TopK) keeps more than 3839"
    (what,) = violations(file_of(node("ScatterElements", "x", "at", "one", reduction="add"), constants=[indices, one]))
    assert what == "ScatterElements (the_ScatterElements) has the reduction b'add'"
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [4], [1.0] * 4)
    (what,) = violations(file_of(node("LayerNormalization", "x", "scale", outputs=["y", "mean"]), constants=[scale]))
    assert what == "LayerNormalization (the_LayerNormalization) has more outputs than the first"


def test_functions_are_named(file_of):
    path = file_of(node("Relu"))
    model = onnx.load_model(path)
    relu = helper.make_function("mine", "Twice", ["x"], ["y"], [node("Relu")], [helper.make_opsetid("", OPSET)])
    model.functions.append(relu)
    onnx.save_model(model, path)
    assert violations(path) == ["it has a function, Twice"]


def test_each_operator_of_the_list_is_one_of_the_opset_and_runs_on_the_cpu():
    kernels = {kernel.op_name for kernel in internals.get_all_opkernel_def() if kernel.domain == ""}
    as_others = {name for name in OPERATORS if onnx.defs.get_schema(name, OPSET, "").has_function}
    assert set(OPERATORS) - kernels <= as_others | {"Constant"}


def test_every_list_names_operators():
    assert set(portable.BUILD_TIME) | set(portable.ATTRIBUTES) <= set(OPERATORS)
    assert sum(len(names.split()) for names in portable._OPERATORS.values()) == len(OPERATORS)


def test_the_export_refuses_what_is_not_portable(tmp_path, monkeypatch):
    monkeypatch.setitem(portable.OPERATORS, "Relu", ())
    with pytest.raises(ExportError, match="model.onnx is not portable: .*Relu"):
        export(make_sae(), tmp_path / "sae")
    assert not (tmp_path / "sae").exists()


def test_a_custom_class_may_use_other_operators(tmp_path, monkeypatch):
    monkeypatch.setitem(portable.OPERATORS, "Relu", ())
    own = type("Mine", (HookedSAE,), {})({"d_in": 6, "d_sae": 16, "hook_name": "h"})
    export(own, tmp_path / "sae")
