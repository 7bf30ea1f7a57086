"""Makes the encoder's bias a part of its product: a one in each row of its input, and the bias as a row of its matrix.

A GPU writes and reads `d_sae` values per token to add a bias by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from . import onnxproto as proto
from .interface import by_name
from .names import TOKENS
from .nodes import OnnxNode
from .onnxfile import initializer_shape, initializers
from .protobuf import UNREADABLE, encode, fields, submessages

BIAS_ROWS = 8
"""Number of rows that are added to the matrix, and of columns to its input; with 8, both stay aligned to 16 bytes."""

ONES, MATRIX = "folded.ones", "folded.matrix"
"""Inputs of a folded model: the columns of the input, `(tokens, BIAS_ROWS)`, and the matrix with its new rows."""

COLUMNS = encode([(proto.ATTRIBUTE_NAME, b"axis"), (proto.ATTRIBUTE_INT, 1), (proto.ATTRIBUTE_TYPE, proto.INT)])
"""The attribute of Concat that appends columns."""


@dataclass(frozen=True)
class FoldedBias:
    """A model whose encoder has its bias in its product.

    Attributes:
        model: The model, which has the inputs `ONES` and `MATRIX` after those of the graph.
        matrix: Name of the parameter that is the matrix of the encoder, `(d_in, d_sae)`.
        bias: Name of its bias, `(d_sae,)`.
        shape: Shape of the matrix.
    """

    model: bytes
    matrix: str
    bias: str
    shape: tuple[int, int]


def fold_bias(model: bytes, element_type: int) -> FoldedBias | None:
    """Return a graph with the bias of its encoder in the product; None if it has no product that only a bias follows.

    Args:
        model: Content of the ONNX file, a graph whose values have one row for each token.
        element_type: Number of the SAE's dtype in ONNX.
    """
    try:
        (graph,) = submessages(memoryview(model), proto.MODEL_GRAPH)
        nodes = [OnnxNode.of(message) for message in submessages(graph, proto.GRAPH_NODE)]
        shapes = {name: initializer_shape(message) for name, message in initializers(graph).items()}
        outputs = by_name(submessages(graph, proto.GRAPH_OUTPUT))
    except UNREADABLE:  # the graph runs as it is, if ONNX Runtime can read it
        return None
    for product in nodes:
        added = _added_bias(product, nodes, shapes)
        if added is not None and product.outputs[0] not in outputs:
            bias, add = added
            matrix = product.inputs[1]
            d_in, d_sae = shapes[matrix]
            folded = _rewrite(model, graph, nodes, product, add, (d_in + BIAS_ROWS, d_sae), element_type)
            return FoldedBias(folded, matrix, bias, (d_in, d_sae))
    return None


def _added_bias(
    product: OnnxNode, nodes: list[OnnxNode], shapes: dict[str, tuple[int, ...]]
) -> tuple[str, OnnxNode] | None:
    """Return the bias that is added to the product of an encoder, and nothing else is done with it, and the addition.

    An encoder has more columns than rows. In a decoder, the input is what is wide, and copying it costs more.
    """
    shape = shapes.get(product.inputs[1], ()) if product.operator == "MatMul" else ()
    readers = [node for node in nodes if product.outputs[0] in node.inputs]
    if len(shape) != 2 or shape[0] >= shape[1] or len(readers) != 1 or readers[0].operator != "Add":
        return None
    (add,) = readers
    others = [name for name in add.inputs if name != product.outputs[0]]
    return (others[0], add) if len(others) == 1 and shapes.get(others[0]) == shape[1:] else None


def _rewrite(
    model: bytes,
    graph: memoryview,
    nodes: list[OnnxNode],
    product: OnnxNode,
    add: OnnxNode,
    shape: tuple[int, int],
    element_type: int,
) -> bytes:
    x, with_ones = product.inputs[0], "folded.input"

    def rewritten() -> Iterator[bytes | memoryview]:
        for node in nodes:
            if node is product:
                yield _node("Concat", (x, ONES), with_ones, COLUMNS)
                yield _node("MatMul", (with_ones, MATRIX), add.outputs[0])
            elif node is not add:
                yield node.message

    read = {name for node in nodes if node not in (product, add) for name in node.inputs}
    content = encode(
        [
            *((proto.GRAPH_NODE, message) for message in rewritten()),
            (proto.GRAPH_NAME, b"folded"),
            *((proto.GRAPH_INITIALIZER, tensor) for name, tensor in initializers(graph).items() if name in read),
            *((proto.GRAPH_INPUT, message) for message in submessages(graph, proto.GRAPH_INPUT)),
            (proto.GRAPH_INPUT, _value(ONES, element_type, (TOKENS, BIAS_ROWS))),
            (proto.GRAPH_INPUT, _value(MATRIX, element_type, shape)),
            *((proto.GRAPH_OUTPUT, message) for message in submessages(graph, proto.GRAPH_OUTPUT)),
        ]
    )
    kept = [(field, value) for field, value in fields(memoryview(model)) if field != proto.MODEL_GRAPH]
    return encode([*kept, (proto.MODEL_GRAPH, content)])


def _node(operator: str, inputs: tuple[str, ...], output: str, *attributes: bytes) -> bytes:
    return encode(
        [
            *((proto.NODE_INPUT, name.encode()) for name in inputs),
            (proto.NODE_OUTPUT, output.encode()),
            (proto.OPERATOR, operator.encode()),
            *((proto.ATTRIBUTE, attribute) for attribute in attributes),
        ]
    )


def _value(name: str, element_type: int, shape: tuple[int | str, ...]) -> bytes:
    dimensions = [
        encode([(proto.SIZE, size)]) if isinstance(size, int) else encode([(proto.SYMBOL, size.encode())])
        for size in shape
    ]
    tensor = encode(
        [(proto.ELEMENT_TYPE, element_type), (proto.SHAPE, encode((proto.DIMENSION, d) for d in dimensions))]
    )
    return encode([(proto.VALUE_NAME, name.encode()), (proto.VALUE_TYPE, encode([(proto.TENSOR_TYPE, tensor)]))])
