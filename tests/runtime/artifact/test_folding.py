"""The bias of an encoder is moved into its product, where nothing but the bias follows the product."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.artifact.folding import BIAS_ROWS, MATRIX, ONES, fold_bias
from tests.support.samples import normal

D_IN, D_SAE = 3, 5
PARAMETERS = {
    "W": normal(D_IN, D_SAE),
    "b": normal(D_SAE, seed=2),
    "c": normal(D_SAE, seed=3),
    "V": normal(D_SAE, D_IN),
    "d": normal(D_IN),
}
ENCODER = [("MatMul", "x W", "p"), ("Add", "p b", "pre"), ("Relu", "pre", "y")]


def model_of(*nodes, outputs=("y",), names="W b c V"):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, inputs.split(), outputs.split()) for op, inputs, outputs in nodes],
        "graph",
        [value("x", TensorProto.FLOAT, ["tokens", D_IN])],
        [value(name, TensorProto.FLOAT, ["tokens", D_IN if name == "z" else D_SAE]) for name in outputs],
        [numpy_helper.from_array(PARAMETERS[name], name) for name in names.split()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def run(model, **feeds):
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


@pytest.mark.parametrize("encoder", [ENCODER, [ENCODER[0], ("Add", "b p", "pre"), ENCODER[2]]], ids=["p + b", "b + p"])
@pytest.mark.parametrize("outputs", [("y",), ("pre", "y"), ("y", "z")])
def test_the_product_adds_the_bias(encoder, outputs):
    decoder = [("Mul", "y c", "scaled"), ("MatMul", "scaled V", "z"), ("Sub", "b c", "unused")]
    model = model_of(*encoder, *decoder, outputs=outputs)
    folded = fold_bias(model, TensorProto.FLOAT)
    assert (folded.matrix, folded.bias, folded.shape) == ("W", "b", (D_IN, D_SAE))
    onnx.checker.check_model(onnx.load_from_string(folded.model), full_check=True)
    graph = onnx.load_from_string(folded.model).graph
    assert [value.name for value in graph.input] == ["x", ONES, MATRIX]
    assert "W" not in [tensor.name for tensor in graph.initializer]
    x = normal(4, D_IN)
    ones = np.zeros((4, BIAS_ROWS), np.float32)
    ones[:, 0] = 1
    matrix = np.zeros((D_IN + BIAS_ROWS, D_SAE), np.float32)
    matrix[:D_IN], matrix[D_IN] = PARAMETERS["W"], PARAMETERS["b"]
    found = run(folded.model, x=x, **{ONES: ones, MATRIX: matrix})
    for y, wanted in zip(found, run(model, x=x), strict=True):
        assert np.allclose(y, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        [("MatMul", "x W", "p"), ("Relu", "p", "y")],  # no bias
        [*ENCODER, ("Abs", "p", "z")],  # the product is read once more
        [("MatMul", "x W", "p"), ("Sub", "p b", "y")],
        [("MatMul", "x W", "p"), ("Add", "p p", "y")],
        [("MatMul", "x W", "p"), ("Relu", "b", "r"), ("Add", "p r", "y")],  # the bias is computed
        [("Relu", "x", "a"), ("Pad", "a b", "y")],
    ],
    ids=str,
)
def test_other_graphs_are_left_alone(nodes):
    assert fold_bias(model_of(*nodes), TensorProto.FLOAT) is None


def test_a_decoder_is_left_alone():
    decoder = [("MatMul", "x W", "p"), ("Relu", "p", "q"), ("MatMul", "q V", "r"), ("Add", "r d", "y")]
    assert fold_bias(model_of(*decoder, names="W V d"), TensorProto.FLOAT) is None


def test_the_product_may_be_an_output():
    """Then the caller wants it without the bias."""
    assert fold_bias(model_of(*ENCODER, outputs=("p", "y")), TensorProto.FLOAT) is None


def test_what_is_not_onnx_is_left_to_onnx_runtime():
    assert fold_bias(b"no model", TensorProto.FLOAT) is None
