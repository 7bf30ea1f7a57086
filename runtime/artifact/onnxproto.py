"""Field numbers of the messages in an ONNX file.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
"""

MODEL_GRAPH, MODEL_OPSETS, MODEL_METADATA, MODEL_FUNCTIONS = 7, 8, 14, 25
"""`ModelProto`."""

GRAPH_NODE, GRAPH_NAME, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 2, 5, 11, 12
"""`GraphProto`."""

NODE_INPUT, NODE_OUTPUT, OPERATOR, ATTRIBUTE, DOMAIN = 1, 2, 4, 5, 7
"""`NodeProto`."""

ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH = 1, 3, 5, 6
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_TYPE = 10, 11, 20
"""`AttributeProto`."""

INT = 2
"""The value of `ATTRIBUTE_TYPE` of an integer."""

DIMS, DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 8, 9, 13, 14
"""`TensorProto`."""

EXTERNAL = 1
"""The value of `DATA_LOCATION` of a tensor whose bytes are in another file."""

KEY, VALUE = 1, 2
"""`StringStringEntryProto`, of which metadata and the places of external data consist."""

VALUE_NAME, VALUE_TYPE = 1, 2
"""`ValueInfoProto`."""

TENSOR_TYPE, ELEMENT_TYPE, SHAPE, DIMENSION = 1, 1, 2, 1
"""`TypeProto`, `TypeProto.Tensor` and `TensorShapeProto`, one inside the other."""

SIZE, SYMBOL = 1, 2
"""`TensorShapeProto.Dimension`."""
