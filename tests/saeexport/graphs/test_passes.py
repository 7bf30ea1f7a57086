"""The passes, each on small graphs made for it."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from saeexport import ExportError
from saeexport.graphs.passes.external import point_to_weights
from saeexport.graphs.passes.gemm import products_to_gemm
from saeexport.graphs.passes.strip import strip_remarks
from saeexport.graphs.passes.tools.subgraph import extract
from saeexport.graphs.passes.unfuse import gemm_to_matmul_and_add
from tests.support.samples import normal

W, B = normal(6, 5, seed=2), normal(5, seed=3)


def model_of(nodes, inputs=(("x", ["n", 6]),), outputs=(("y", ["n", 5]),), initializers=None):
    arrays = {"W": W, "b": B} if initializers is None else initializers
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model, **feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, feeds)


def rewritten(model, rewrite=products_to_gemm, **feeds):
    """Return the operators after a pass, and check that the results are unchanged."""
    before = run(model, **feeds)
    after = ir.to_proto(rewrite(ir.from_proto(model)))
    onnx.checker.check_model(after, full_check=True)
    for a, b in zip(before, run(after, **feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return [node.op_type for node in after.graph.node]


def product(equation):
    if equation == "MatMul":
        return helper.make_node("MatMul", ["x", "W"], ["p"])
    return helper.make_node("Einsum", ["x", "W"], ["p"], equation=equation)


def test_a_gemm_with_a_bias_becomes_a_product_and_a_sum():
    split = helper.make_node("Gemm", ["x", "W", "b"], ["y"])
    assert rewritten(model_of([split]), gemm_to_matmul_and_add, x=normal(4, 6)) == ["MatMul", "Add"]


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [(["x", "W"], {}), (["x", "WT", "b"], {"transB": 1}), (["x", "W", "b"], {"alpha": 0.5}), (["x", "W", "c"], {})],
    ids=["no bias", "transposed", "scaled", "a matrix is added"],
)
def test_other_gemms_are_left_alone(inputs, attributes):
    node = helper.make_node("Gemm", inputs, ["y"], **attributes)
    arrays = {"W": W, "WT": np.ascontiguousarray(W.T), "b": B, "c": normal(4, 5)}
    model = model_of([node], initializers={name: arrays[name] for name in inputs[1:]})
    assert rewritten(model, gemm_to_matmul_and_add, x=normal(4, 6)) == ["Gemm"]


@pytest.mark.parametrize("equation", ["...a,ab->...b", "ij,jk->ik", "...d, de -> ...e", "MatMul"])
@pytest.mark.parametrize("order", [["p", "b"], ["b", "p"]])
def test_a_product_and_its_bias_become_one_gemm(equation, order):
    model = model_of([product(equation), helper.make_node("Add", order, ["y"])])
    assert rewritten(model, x=normal(4, 6)) == ["Gemm"]


def test_a_product_without_bias():
    assert rewritten(model_of([helper.make_node("MatMul", ["x", "W"], ["y"])]), x=normal(4, 6)) == ["Gemm"]


def test_a_product_that_others_read_keeps_its_own_value():
    nodes = [product("MatMul"), helper.make_node("Add", ["p", "b"], ["y"]), helper.make_node("Neg", ["p"], ["z"])]
    model = model_of(nodes, outputs=(("y", ["n", 5]), ("z", ["n", 5])))
    assert rewritten(model, x=normal(4, 6)) == ["Gemm", "Add", "Neg"]


def test_a_product_that_is_an_output_keeps_its_own_value():
    model = model_of([product("MatMul"), helper.make_node("Add", ["p", "b"], ["y"])],
                     outputs=(("y", ["n", 5]), ("p", ["n", 5])))  # fmt: skip
    assert rewritten(model, x=normal(4, 6)) == ["Gemm", "Add"]


@pytest.mark.parametrize("equation", ["ij,kj->ik", "...a,ba->...b"])
def test_a_product_with_a_transposed_matrix_becomes_a_gemm_too(equation):
    einsum = helper.make_node("Einsum", ["x", "Wt"], ["p"], equation=equation)
    model = model_of(
        [einsum, helper.make_node("Add", ["p", "b"], ["y"])],
        initializers={"Wt": np.ascontiguousarray(W.T), "b": B},
    )
    assert rewritten(model, x=normal(4, 6)) == ["Gemm"]


@pytest.mark.parametrize("equation", ["ij,jk->ki", "ji,jk->ik", "ij,ij->ij"])
def test_other_equations_are_left_alone(equation):
    square = normal(6, 6, seed=4)
    model = model_of([helper.make_node("Einsum", ["x", "W"], ["y"], equation=equation)],
                     inputs=(("x", [6, 6]),), outputs=(("y", [6, 6]),), initializers={"W": square})  # fmt: skip
    assert rewritten(model, x=normal(6, 6)) == ["Einsum"]


def test_products_of_a_higher_rank_are_left_alone():
    nodes = [product("MatMul"), helper.make_node("Add", ["p", "b"], ["y"])]
    model = model_of(nodes, inputs=(("x", ["n", 2, 6]),), outputs=(("y", ["n", 2, 5]),))
    assert rewritten(model, x=normal(4, 2, 6)) == ["MatMul", "Add"]


def test_an_added_matrix_is_not_a_bias():
    nodes = [product("MatMul"), helper.make_node("Add", ["p", "z"], ["y"])]
    model = model_of(nodes, inputs=(("x", ["n", 6]), ("z", ["n", 5])))
    assert rewritten(model, x=normal(4, 6), z=normal(4, 5)) == ["Gemm", "Add"]


def test_remarks_are_removed():
    model = model_of([helper.make_node("MatMul", ["x", "W"], ["y"], doc_string="File secret.py")])
    model.doc_string, model.producer_version = "made in /home", "1.2.3"
    model.graph.doc_string = model.graph.input[0].doc_string = "a remark"
    for holder in (model, model.graph, model.graph.node[0], model.graph.output[0]):
        holder.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File secret.py")
    text = ir.to_proto(strip_remarks(ir.from_proto(model))).SerializeToString()
    for word in (b"secret", b"made in", b"1.2.3", b"remark", b"stack_trace"):
        assert word in model.SerializeToString()
        assert word not in text


def test_a_part_of_a_graph_is_a_separate_model():
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    whole = ir.from_proto(model_of(nodes, outputs=(("y", ["n", 5]), ("z", ["n", 5]))))
    before = ir.to_proto(whole).SerializeToString()
    part = ir.to_proto(extract(whole, ["y"], ["z"]))
    assert [node.op_type for node in part.graph.node] == ["Neg"]
    assert not part.graph.initializer
    np.testing.assert_array_equal(run(part, y=normal(4, 5))[0], -normal(4, 5))
    assert ir.to_proto(whole).SerializeToString() == before


def test_parameters_point_into_the_weights(tmp_path):
    save_file({"W": W, "b": B}, tmp_path / "w.safetensors")
    model = ir.from_proto(model_of([product("MatMul"), helper.make_node("Add", ["p", "b"], ["y"])]))
    expected = run(ir.to_proto(model), x=normal(4, 6))
    ir.save(point_to_weights(model, tmp_path / "w.safetensors"), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    np.testing.assert_array_equal(session.run(None, {"x": normal(4, 6)})[0], expected[0])


def test_a_parameter_of_another_shape_than_stored_is_refused(tmp_path):
    save_file({"W": W.T.copy(), "b": B}, tmp_path / "w.safetensors")
    model = ir.from_proto(model_of([product("MatMul"), helper.make_node("Add", ["p", "b"], ["y"])]))
    with pytest.raises(ExportError, match=r"W is \(6, 5\) in the graph and \(5, 6\) in w.safetensors"):
        point_to_weights(model, tmp_path / "w.safetensors")


def test_weights_that_the_trace_computed_are_refused(tmp_path):
    save_file({"b": B}, tmp_path / "w.safetensors")
    big = normal(300, 5)
    model = ir.from_proto(model_of([helper.make_node("MatMul", ["x", "folded"], ["y"])],
                                   inputs=(("x", ["n", 300]),), initializers={"folded": big}))  # fmt: skip
    with pytest.raises(ExportError, match=r"constant 'folded' of shape \(300, 5\) that is not in the state dict"):
        point_to_weights(model, tmp_path / "w.safetensors")
