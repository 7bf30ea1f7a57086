"""Writes nodes to a graph with one call per node, which returns the value that the node computes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

INT64 = ir.TensorType(ir.DataType.INT64)


class Nodes:
    """Appends nodes to a graph, or inserts them before one of its nodes.

    Constants become initializers of the outermost graph, without duplicates. Names are unique across subgraphs.

    Attributes:
        graph: Graph to which nodes are written.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node | None = None, outermost: "Nodes | None" = None) -> None:
        self.graph = graph
        self._before = before
        self._outermost = outermost or self
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._names = {value.name for value in ir.convenience.create_value_mapping(graph).values()}

    def __call__(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Write a node and return its only output."""
        return self.multi_output(op_type, inputs, 1, **attributes)[0]

    def multi_output(
        self, op_type: str, inputs: Sequence[ir.Value | None], n: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Write a node and return its `n` outputs."""
        node = ir.node(op_type, list(inputs), attributes, num_outputs=n)
        for output in node.outputs:
            output.name = self._outermost._name(op_type)
        if self._before is None:
            self.graph.append(node)
        else:
            self.graph.insert_before(self._before, node)
        return node.outputs

    def cast(self, value: ir.Value, to: ir.DataType) -> ir.Value:
        """Return a value in another dtype."""
        return self("Cast", [value], to=int(to))

    def scalar(self, value: int) -> ir.Value:
        """Return an int64 scalar constant."""
        return self._constant(np.array(value, np.int64))

    def vector(self, values: Sequence[int]) -> ir.Value:
        """Return an int64 constant, `[n]`."""
        return self._constant(np.array(values, np.int64))

    def number(self, value: float, like: ir.Value) -> ir.Value:
        """Return a constant, `[1]`, of the dtype of another value."""
        assert like.dtype is not None
        return self.array([value], like.dtype)

    def array(self, values: Any, dtype: ir.DataType) -> ir.Value:
        """Return a constant with the values and the shape of an array."""
        return self._constant(np.array(values, dtype.numpy()))

    def if_else(
        self,
        condition: ir.Value,
        types: Sequence[ir.TypeProtocol],
        then: Callable[["Nodes"], Sequence[ir.Value]],
        otherwise: Callable[["Nodes"], Sequence[ir.Value]],
    ) -> Sequence[ir.Value]:
        """Write an `If` and return its results.

        Args:
            condition: Boolean with one element.
            types: Types of the results.
            then: Writes the nodes to run if the condition holds, and returns their results.
            otherwise: Writes the nodes to run if it does not, and returns their results.
        """
        branches = {}
        for name, write in (("then_branch", then), ("else_branch", otherwise)):
            at = Nodes(ir.Graph([], [], nodes=[], name=self._outermost._name(name)), outermost=self._outermost)
            branches[name] = at._closed(write(at), types)
        chosen = self.multi_output("If", [condition], len(types), **branches)
        for value, kind in zip(chosen, types, strict=True):
            value.type = kind
        return chosen

    def loop(self, n: ir.Value, kind: ir.TypeProtocol, write: Callable[["Nodes", ir.Value], ir.Value]) -> ir.Value:
        """Write a `Loop` and return the results of its iterations, stacked along a new first axis.

        Args:
            n: Number of iterations, an int64 scalar.
            kind: Type of the result.
            write: Takes the number of the iteration, writes its nodes, and returns their result.
        """
        name = self._outermost._name("body")
        iteration = ir.val(f"{name}.iteration", ir.DataType.INT64, [])
        go_on = ir.val(f"{name}.go_on", ir.DataType.BOOL, [])
        at = Nodes(ir.Graph([iteration, go_on], [], nodes=[], name=name), outermost=self._outermost)
        result = write(at, iteration)
        body = at._closed([at("Identity", [go_on]), result], [ir.TensorType(ir.DataType.BOOL), kind])
        stacked = self("Loop", [n, self._constant(np.array(True))], body=body)
        stacked.type = kind
        return stacked

    def _closed(self, outputs: Sequence[ir.Value], types: Sequence[ir.TypeProtocol]) -> ir.Graph:
        """Return the subgraph with these outputs and their types."""
        for value, kind in zip(outputs, types, strict=True):
            value.type = kind
        self.graph.outputs.extend(outputs)
        return self.graph

    def _name(self, of: str) -> str:
        number = 1
        while (name := f"{of}.{number}") in self._names:
            number += 1
        self._names.add(name)
        return name

    def _constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        root, key = self._outermost, (array.dtype.str, array.shape, array.tobytes())
        if key not in root._constants:
            name = root._name("constant")
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            root.graph.register_initializer(value)
            root._constants[key] = value
        return root._constants[key]
