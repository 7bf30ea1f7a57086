"""Cuts the activations of some features out of a graph, with the columns of the parameters that these features need.

The graph is followed backwards from `hook_sae_acts_post`. Up to the product with the encoder, every operator has to
compute each feature from its own values; there, the parameters are cut to the chosen features. Before the product,
everything stays as it is. So the operators, their order and their dtypes are those of the graph that was proved, and
an architecture need not be known. The result is a model of its own, with its parameters inside.

Source: https://onnx.ai/onnx/operators/; https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md,
`com.microsoft.MatMulNBits`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..arrays.dtypes import DTYPES
from ..arrays.tensor import Array
from ..errors import InputError
from . import onnxproto as proto
from .manifest import SAEConfig
from .names import HOOK_ACTS_POST, TOKENS
from .nodes import OnnxNode
from .onnxfile import Parameter, initializer_shape, initializers, not_onnx
from .protobuf import UNREADABLE, encode, fields, submessages, text

LARGEST_PARAMETER = 1 << 30
"""Largest size in bytes of a parameter that is cut; a protobuf message has at most 2 GiB."""

FEATURE_BY_FEATURE = {
    "Abs", "Add", "And", "Cast", "Clip", "Div", "Elu", "Equal", "Erf", "Exp", "Greater", "GreaterOrEqual", "Identity",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Relu", "Sigmoid",
    "Sign", "Softplus", "Sqrt", "Sub", "Tanh", "Where", "Xor",
}  # fmt: skip
"""Operators that compute each element of their output from the elements at the same place of their inputs."""

QUANTIZED = "MatMulNBits"
"""The product whose matrix is stored as a row of blocks for each column, and which has their number as an attribute."""

COLUMNS = -1
"""The axis of a matrix, counted from the end, that is cut; also the axis of the features of an activation."""


def select_features(
    model: bytes, path: Path, parameters: Mapping[str, Parameter], ids: Array, config: SAEConfig
) -> bytes:
    """Return an ONNX model from the inputs of a graph to `hook_sae_acts_post` of some features, `(tokens, m)`.

    Args:
        model: Content of a graph that computes `hook_sae_acts_post`.
        path: Path of the graph, for errors.
        parameters: Its parameters in other files, by name.
        ids: Ids of the features, `(m,)`, in the order of the result.
        config: Configuration of the SAE.

    Raises:
        ArtifactError: The file is not ONNX.
        InputError: The activation of a feature depends on other features, or the parameters of so many features do not
            fit into a model.
    """
    try:
        cut = _Cut(model, parameters, config)
        cut.follow()
        return cut.model(ids)
    except InputError:
        raise
    except UNREADABLE as error:
        raise not_onnx(path, error) from None


def _product_axes(node: OnnxNode) -> dict[int, int | None]:
    """Return for each input of a product the axis of the columns of its output; {} for other operators."""
    if node.operator == "Gemm" and not node.integers.get("transA"):
        return {0: None, 1: -2 if node.integers.get("transB") else COLUMNS, 2: COLUMNS}
    return {"MatMul": {0: None, 1: COLUMNS}, QUANTIZED: {0: None, 1: -3, 2: -2, 5: COLUMNS}}.get(node.operator, {})


def _with_columns(node: OnnxNode, m: int) -> bytes:
    """Return the message of a quantized product with `m` columns."""

    def changed(field: int, value: "int | memoryview") -> "tuple[int, int | bytes | memoryview]":
        if field == proto.ATTRIBUTE and not isinstance(value, int):
            attribute = dict(fields(value))
            if text(attribute[proto.ATTRIBUTE_NAME]) == "N":
                return field, encode({**attribute, proto.ATTRIBUTE_INT: m}.items())
        return field, value

    return encode(changed(field, value) for field, value in fields(node.message))


class _Cut:
    """A graph and what of it is needed.

    Attributes:
        axes: For each value that is needed, the axis of the features that is cut, counted from the end; None if the
            whole value is needed.
    """

    def __init__(self, model: bytes, parameters: Mapping[str, Parameter], config: SAEConfig) -> None:
        self._model = memoryview(model)
        (self._graph,) = submessages(self._model, proto.MODEL_GRAPH)
        self._nodes = [OnnxNode.of(message) for message in submessages(self._graph, proto.GRAPH_NODE)]
        self._initializers = initializers(self._graph)
        self._shapes = {name: initializer_shape(message) for name, message in self._initializers.items()}
        self._parameters = parameters
        self._config = config
        self.axes: dict[str, int | None] = {HOOK_ACTS_POST: COLUMNS}
        self._needed: list[OnnxNode] = []

    def follow(self) -> None:
        """Find what is needed, from the output backwards: the operators are in the order in which they run.

        Raises:
            InputError: The activation of a feature depends on other features.
        """
        for node in reversed(self._nodes):
            axes = {self.axes[name] for name in node.outputs if name in self.axes}
            if not axes:
                continue
            self._needed.insert(0, node)
            axis = axes.pop()
            if node.has_graphs or axes or (axis is not None and not node.inputs):  # such as a Constant
                self._refuse(f"the operator {node.operator}")
            for place, name in enumerate(node.inputs):
                if not name:  # an optional input that is left out
                    continue
                cut = None if axis is None else self._axis(node, place, name, axis)
                if self.axes.setdefault(name, cut) != cut:
                    self._refuse(f"the operator {node.operator}")
        for name in self.axes.keys() - {name for node in self._needed for name in node.outputs} - {*self._parameters}:
            if self.axes[name] is not None:
                self._refuse(f"the value {name}")

    def model(self, ids: Array) -> bytes:
        """Return the model for these features."""
        tensors = [
            (proto.GRAPH_INITIALIZER, self._tensor(name, message, ids))
            for name, message in self._initializers.items()
            if name in self.axes
        ]
        shape = [encode([(2, TOKENS.encode())]), encode([(1, len(ids))])]
        tensor = encode([(1, DTYPES[self._config.dtype].onnx), (2, encode((1, dimension) for dimension in shape))])
        output = encode([(1, HOOK_ACTS_POST.encode()), (2, encode([(1, tensor)]))])
        graph = encode(
            [
                *((proto.GRAPH_NODE, self._message(node, len(ids))) for node in self._needed),
                (proto.GRAPH_NAME, b"selected_features"),
                *tensors,
                *((proto.GRAPH_INPUT, message) for message in submessages(self._graph, proto.GRAPH_INPUT)),
                (proto.GRAPH_OUTPUT, output),
            ]
        )
        kept = [
            (field, value)
            for field, value in fields(self._model)
            if field not in (proto.MODEL_GRAPH, proto.MODEL_METADATA)
        ]
        return encode([*kept, (proto.MODEL_GRAPH, graph)])

    def _axis(self, node: OnnxNode, place: int, name: str, axis: int) -> int | None:
        """Return the axis of an operator's input that is cut if `axis` of its output is; None if none is.

        A vector is broadcast along the columns, so that an operator with several inputs is followed along these only.
        """
        if node.operator in FEATURE_BY_FEATURE and (axis == COLUMNS or len(node.inputs) == 1):
            cut: int | None = axis
        else:
            axes = _product_axes(node) if axis == COLUMNS else {}
            if place not in axes:
                self._refuse(f"the operator {node.operator}")
            cut = axes[place]
        shape = self._shapes.get(name)
        if cut is None or shape is None:
            return cut
        is_constant = len(shape) < -cut or shape[cut] == 1 != self._config.d_sae  # the same for all features
        return None if is_constant else cut

    def _tensor(self, name: str, message: memoryview, ids: Array) -> bytes | memoryview:
        """Return an initializer with its values, cut to the features where it has some for each."""
        axis, parameter = self.axes[name], self._parameters.get(name)
        if parameter is None:
            return message
        array = parameter.array
        if axis is not None:
            if array.shape[axis] != self._config.d_sae:
                raise ValueError(f"{name} is {array.shape}, for {self._config.d_sae} features")
            if array.nbytes // array.shape[axis] * len(ids) > LARGEST_PARAMETER:
                raise InputError(f"{len(ids)} features are too many for one model. Use encode(x)[..., ids].")
            array = np.take(array, ids, axis)
        return encode(
            [
                *((proto.DIMS, size) for size in array.shape),
                (proto.DATA_TYPE, parameter.element_type),
                (proto.NAME, name.encode()),
                (proto.RAW_DATA, array.tobytes()),
            ]
        )

    def _message(self, node: OnnxNode, m: int) -> bytes | memoryview:
        is_cut = node.operator == QUANTIZED and self.axes.get(node.outputs[0]) is not None
        return _with_columns(node, m) if is_cut else node.message

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            f"The features of this {self._config.architecture} SAE cannot be computed one without the others: {what} "
            "of its encoder may read them all. Use encode(x)[..., ids], or top_features(x, k) for the strongest."
        )
