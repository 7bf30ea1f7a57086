"""Inserts an SAE into the graph of a host, and lets the host go on from the SAE's output.

At a value x of the host, `[batch, positions, d_in]` or with heads `[batch, positions, n_heads, d_head]`:

    tap       x --+--> the host, unchanged
                  +--> the SAE --> hooks
    splice    x --+--> the SAE --> hooks
                  |        +-----> recons, plus error with the error term --+
                  +------------------------------------------ Where(attach) +--> the host goes on

Where the dtypes of the host and of the SAE differ, x and the output are cast. An SAE whose dtype rounds more than the
host's rounds what it reads; its hook `hook_sae_input` is x as the host has it.

A transcoder reads x and predicts another value y of the host, its target, `[batch, positions, d_out]`:

    splice    x -----> the transcoder --> hooks
              y --+        +-----> recons, plus error with the error term --+
                  +------------------------------------------ Where(attach) +--> the host goes on instead of y
"""

from typing import Any

import numpy as np
import onnx.defs
import onnx_ir as ir

from runtime.artifact.budgets import FLOOR
from runtime.artifact.manifest import SAEConfig
from runtime.artifact.names import (
    FEATURE_IDS,
    FEATURE_SCALE,
    HOOK_ERROR,
    HOOK_INPUT,
    HOOK_OUTPUT,
    HOOK_RECONS,
    INPUT,
    INTERVENTION,
    TARGET,
)
from runtime.errors import GraftError
from runtime.hosts.names import ATTACH, USE_ERROR_TERM, at

from .grafts import Graft, trailing_dimensions
from .inference import NAMES


class Inserted:
    """An SAE in the graph of a host.

    Attributes:
        hooks: The hooks by name, with the leading dimensions of the host's value.
        target: For a transcoder, the value that it predicts, as an output of its own; otherwise None.
    """

    def __init__(self, graph: ir.Graph, graft: Graft, x: ir.Value, name: str, target: "ir.Value | None" = None) -> None:
        """Insert one of the SAE's graphs so that it reads `x`.

        Args:
            graph: Graph of the host.
            graft: The SAE and its place.
            x: Value that the SAE reads.
            name: Name of the SAE's graph.
            target: For a transcoder, the value that it predicts; None for an SAE, and for features alone.

        Raises:
            GraftError: The shape or dtype of `x` does not fit the SAE.
        """
        self._graph, self._graft, self._x = graph, graft, x
        self._replaced = x if target is None else target
        self._nodes: list[ir.Node] = []
        self._constants: dict[tuple[int, ...], ir.Value] = {}
        trailing = trailing_dimensions(x, graft)
        self._shape = self._node("Shape", [x])
        self._leading = self._node("Slice", [self._shape, self._vector(0), self._vector(-trailing)])
        model = ir.load(graft.artifact.folder / graft.artifact.manifest.graphs[name].file)
        inputs = {value.name: value for value in model.graph.inputs}
        self._dtype = inputs[INPUT].dtype
        flat = self._node("Reshape", [self._cast(x, self._dtype), self._vector(-1, *graft.sae.input_shape)])
        copies = {inputs[INPUT]: flat}
        if TARGET in inputs:
            assert target is not None
            copies[inputs[TARGET]] = self._node(
                "Reshape", [self._cast(target, self._dtype), self._vector(-1, graft.sae.d_out or 0)]
            )
        for value in model.graph.inputs:
            if value.name in INTERVENTION:
                copies[value] = self._intervention_input(value)
        for value in model.graph.initializers.values():
            copies[value] = self._parameter(value)
        self._copy(model.graph, copies)
        self._outputs = {str(value.name): value for value in model.graph.outputs}
        self.hooks: dict[str, ir.Value] = {}
        self._flat = {name: copies[value] for name, value in self._outputs.items()}
        for name, value in self._outputs.items():
            self.hooks[name] = self._hook(self._flat[name], value, graft.sae)
        if HOOK_INPUT in self.hooks and _rounds_more(self._dtype, x.dtype):
            self.hooks[HOOK_INPUT] = self._hook(x, self._outputs[HOOK_INPUT], graft.sae)
            self.hooks[HOOK_INPUT].type = x.type
        self.target = None if target is None else self._output_of(target)
        self._append()

    def splice(self) -> ir.Value:
        """Let everything that reads `x`, or the target, read the SAE's output instead, and return that output.

        The node that chooses is controlled by two inputs of the graph, `attach` and `use_error_term`. A transcoder that
        was exported without the error term does not have the second one.
        """
        x, own = self._replaced, set(self._nodes)
        users = [use for use in x.uses() if use.node not in own]
        attach = self._flag(ATTACH, True)
        first = len(self._nodes)
        output = self._cast(self._flat[HOOK_RECONS], ir.DataType.FLOAT)
        if HOOK_ERROR in self._flat:
            with_error = self._flag(USE_ERROR_TERM, self._graft.sae.use_error_term)
            total = self._node("Add", [output, self._cast(self._flat[HOOK_ERROR], ir.DataType.FLOAT)])
            total.dtype = ir.DataType.FLOAT
            total = self._cast(self._cast(total, self._dtype), ir.DataType.FLOAT)  # rounded as in the SAE
            output = self._node("Where", [with_error, total, output])
            output.dtype = ir.DataType.FLOAT
            hook = self._cast(output, self._dtype)
            self.hooks[HOOK_OUTPUT] = self._hook(hook, self._outputs[HOOK_OUTPUT], self._graft.sae)
        shape = self._shape if x is self._x else self._node("Shape", [x])
        output = self._node("Reshape", [self._cast(output, x.dtype), shape])
        spliced = self._node("Where", [attach, output, x])
        spliced.type, spliced.shape = x.type, x.shape
        for use in users:
            use.node.replace_input_with(use.idx, spliced)
        for i, value in enumerate(self._graph.outputs):
            if value is x:  # the output of the host keeps its name
                name = x.name
                x.name, spliced.name = f"{name}.clean", name
                self._graph.outputs[i] = spliced
        self._append(first)
        return spliced

    def _node(self, op_type: str, inputs: list[ir.Value | None], **attributes: int) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{self._graft.hook}/graft.{len(self._nodes)}.{op_type}")
        node.outputs[0].name = node.name
        self._nodes.append(node)
        return node.outputs[0]

    def _cast(self, value: ir.Value, dtype: ir.DataType | None) -> ir.Value:
        assert dtype is not None
        if value.dtype == dtype:
            return value
        result = self._node("Cast", [value], to=int(dtype))
        result.dtype = dtype
        return result

    def _vector(self, *sizes: int) -> ir.Value:
        if sizes not in self._constants:
            name = f"{self._graft.hook}.sizes.{len(self._constants)}"
            self._constants[sizes] = self._initializer(name, ir.tensor(np.array(sizes, np.int64), name=name))
        return self._constants[sizes]

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(list(tensor.shape.numpy())), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value

    def _parameter(self, value: ir.Value) -> ir.Value:
        """Return a constant of the SAE as an initializer of the host; its weights stay in the SAE's folder."""
        tensor, name = value.const_value, f"{self._graft.hook}.{value.name}"
        assert tensor is not None
        if isinstance(tensor, ir.ExternalTensor):
            tensor = ir.ExternalTensor(
                f"{self._graft.folder}/{tensor.location}", tensor.offset, tensor.length, tensor.dtype,
                shape=tensor.shape, name=name,
            )  # fmt: skip
        return self._initializer(name, tensor)

    def _intervention_input(self, value: ir.Value) -> ir.Value:
        """Return an input of the graph whose default is no edit."""
        assert value.dtype is not None
        shape = (0,) if value.name == FEATURE_IDS else (1, 0)
        default = (np.ones if value.name == FEATURE_SCALE else np.zeros)(shape, value.dtype.numpy())
        dimensions = [f"{self._graft.hook}.{dimension}" for dimension in value.shape or ()]
        return self._input_with_default(f"{self._graft.hook}.{value.name}", value.dtype, dimensions, default)

    def _flag(self, name: str, default: bool) -> ir.Value:
        return self._input_with_default(f"{self._graft.hook}.{name}", ir.DataType.BOOL, [], np.array(default))

    def _input_with_default(
        self, name: str, dtype: ir.DataType, shape: "list[str]", default: "np.ndarray[Any, Any]"
    ) -> ir.Value:
        value = ir.val(name, dtype=dtype, shape=shape)
        value.const_value = ir.tensor(default, name=name)
        self._graph.inputs.append(value)
        self._graph.initializers[name] = value
        return value

    def _copy(self, sae: ir.Graph, copies: dict[ir.Value, ir.Value]) -> None:
        """Copy the nodes of the SAE's graph; `copies` maps its values to those of the host, and is filled."""
        opset = self._graph.opset_imports.get("", 0)
        for node in sae:
            check_operator(node, opset, self._graft.hook)
            inputs = [None if value is None else copies[value] for value in node.inputs]
            copy = ir.Node(
                node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=len(node.outputs),
                name=f"{self._graft.hook}/{node.name or node.outputs[0].name}",
            )  # fmt: skip
            for old, new in zip(node.outputs, copy.outputs, strict=True):
                new.name, new.type = f"{self._graft.hook}/{old.name}", old.type
                copies[old] = new
            self._nodes.append(copy)

    def _hook(self, value: ir.Value, original: ir.Value, sae: SAEConfig) -> ir.Value:
        """Return the tensor of a hook with the leading dimensions of the host's value."""
        sizes = [size for size in list(original.shape or ())[1:] if isinstance(size, int)]
        shape = self._node("Concat", [self._leading, self._vector(*sizes)], axis=0)
        hook = self._node("Reshape", [value, shape])
        name = at(self._graft.hook, str(original.name))
        if (replaced := self.hooks.get(str(original.name))) is not None:
            replaced.name = f"{name}.default"
        hook.name, hook.type = name, original.type
        leading = list(self._x.shape or ())[: -trailing_dimensions(self._x, self._graft)]
        hook.shape = ir.Shape([*leading, *sizes])
        return hook

    def _output_of(self, value: ir.Value) -> ir.Value:
        """Return a copy of a value of the host that can be an output."""
        copy = self._node("Identity", [value])
        copy.name, copy.type, copy.shape = at(self._graft.hook, TARGET), value.type, value.shape
        return copy

    def _append(self, first: int = 0) -> None:
        """Add the nodes from `first` on to the graph, which is sorted when it is complete."""
        self._graph.extend(self._nodes[first:])


def _rounds_more(dtype: ir.DataType | None, other: ir.DataType | None) -> bool:
    """Tell whether a dtype rounds more than another one: bfloat16 more than float16, and that more than float32."""
    assert dtype is not None
    assert other is not None
    return FLOOR[NAMES[dtype]] > FLOOR[NAMES[other]]


def check_operator(node: ir.Node, opset: int, hook: str) -> None:
    """Refuse a node of an SAE whose operator has another form in the host's opset.

    The SAE's own opset may be newer or older. Most operators only gained dtypes since; others got an input for what was
    an attribute, or did not exist.

    Raises:
        GraftError: The operator does not exist in the opset, or does not have the node's attributes or inputs.
    """
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        problem = "does not exist"
    else:
        strange = set(node.attributes) - set(schema.attributes)
        if not strange and schema.min_input <= len(node.inputs) <= schema.max_input:
            return
        problem = f"does not take {', '.join(sorted(strange)) or f'{len(node.inputs)} inputs'}"
    raise GraftError(
        f"The SAE at {hook} needs the operator {node.op_type}, which {problem} in opset {opset}, that of the host. "
        "Export the host with opset 20."
    )
