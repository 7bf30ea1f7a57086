"""Makes a graph return the k strongest features of each token instead of all `d_sae` activations.

A token with NaN in its activations has no order. It gets the index -1 and the value NaN in every place, and l0 = -1.
Where fewer than k features are on, the places after them get the index -1 and the value 0.
"""

import math
from collections.abc import Sequence

import onnx_ir as ir

from runtime.arrays.dtypes import DTYPES
from runtime.artifact.manifest import GraphSpec, TensorSpec
from runtime.artifact.names import HOOK_ACTS_POST, VALUES, K

from .tools.building import INT64, Nodes
from .tools.sign import is_nonnegative

GROUP = 16
"""Number of neighbouring features whose maximum is found first."""


def keep_strongest(model: ir.Model, spec: GraphSpec) -> ir.Model:
    """Turn a graph from the input to the activations into `features`, with the input and the outputs in its spec.

    Only TopK reads `k`, which it takes on the host, and no value is computed from a shape. ONNX Runtime would put such
    nodes on the CPU, and could then neither load the graph on CUDA alone nor capture it.
    """
    at, acts, k = _with_k(model)
    signed = not is_nonnegative(model.graph.outputs[-1])
    size = at("Abs", [acts]) if signed else acts
    nan = TokensWithNaN(at, at("ReduceSum", [size, at.vector([1])], keepdims=1))
    strength, indices = at.multi_output("TopK", [nan.removed_from(size), k], 2, axis=1)
    values = at("GatherElements", [acts, indices], axis=1) if signed else strength
    return _set_outputs(model, spec, at, nan, indices, strength, values, _count_on(at, acts))


def keep_strongest_on_a_cpu(model: ir.Model, spec: GraphSpec) -> ir.Model:
    """Turn a graph into the CPU variant of `features`, which sorts less, because sorting is slow on a CPU.

    The k strongest features lie in the k groups with the largest maxima, so only these groups are sorted. The groups
    are put in the order of their features, so that of equal activations the one with the smaller id comes first. Where
    fewer than k features are on, all of them are among the strongest and are counted there. For the other tokens, every
    feature is counted; if they are more than half of the tokens, that is done for all tokens without picking them.
    """
    at, acts, k = _with_k(model)
    assert acts.shape is not None
    d_sae = acts.shape[1]
    assert isinstance(d_sae, int)
    group = math.gcd(d_sae, GROUP)
    groups = d_sae // group
    signed = not is_nonnegative(model.graph.outputs[-1])
    tokens = at("Shape", [acts], start=0, end=1)
    nan = TokensWithNaN(at, at("ReduceL1" if signed else "ReduceSum", [acts, at.vector([1])], keepdims=1))

    grouped = at("Reshape", [acts, at.vector([0, groups, group])])
    sizes = at("Abs", [grouped]) if signed else grouped
    most = nan.removed_from(at("ReduceMax", [sizes, at.vector([2])], keepdims=0))
    sought = at("Min", [k, at.vector([groups])])
    _, strongest = at.multi_output("TopK", [most, sought], 2, axis=1, sorted=0)
    chosen, _ = at.multi_output("TopK", [strongest, sought], 2, axis=1, largest=0)
    every_token = at("Range", [at.scalar(0), at("Squeeze", [tokens]), at.scalar(1)])
    first = at("Mul", [at("Unsqueeze", [every_token, at.vector([1])]), at.scalar(groups)])
    members = at("Gather", [at("Reshape", [acts, at.vector([-1, group])]), at("Add", [chosen, first])])
    members = at("Reshape", [members, at("Concat", [tokens, at("Mul", [sought, at.vector([group])])], axis=0)])
    size = at("Abs", [members]) if signed else members
    strength, places = at.multi_output("TopK", [nan.removed_from(size), k], 2, axis=1)
    values = at("GatherElements", [members, places], axis=1) if signed else strength
    place = at("Div", [places, at.scalar(group)])
    inside = at("Sub", [places, at("Mul", [place, at.scalar(group)])])
    indices = at("Add", [at("Mul", [at("GatherElements", [chosen, place], axis=1), at.scalar(group)]), inside])

    found = _count_on(at, strength)
    is_full = at("Equal", [found, k])
    number = at("ReduceSum", [at.cast(is_full, ir.DataType.INT64)], keepdims=0)
    few = at("LessOrEqual", [at("Mul", [number, at.scalar(2)]), at("Squeeze", [tokens])])

    def count_where_full(at: Nodes) -> list[ir.Value]:
        full = at("Gather", [at("NonZero", [is_full]), at.scalar(0)])
        counts = _count_on(at, at("Gather", [acts, full]))
        return [at("ScatterND", [found, at("Unsqueeze", [full, at.vector([1])]), counts])]

    (count,) = at.if_else(few, [INT64], count_where_full, lambda at: [_count_on(at, acts)])
    return _set_outputs(model, spec, at, nan, indices, strength, values, count)


def _with_k(model: ir.Model) -> tuple[Nodes, ir.Value, ir.Value]:
    """Return a writer of nodes, the activations in float32, which every device can sort, and the new input k."""
    graph = model.graph
    acts = graph.outputs[-1]
    k = ir.val(K, dtype=ir.DataType.INT64, shape=[1])
    graph.inputs.append(k)
    at = Nodes(graph)
    if acts.dtype == ir.DataType.FLOAT:
        return at, acts, k
    wide = at.cast(acts, ir.DataType.FLOAT)
    wide.shape, wide.type = acts.shape, ir.TensorType(ir.DataType.FLOAT)
    return at, wide, k


class TokensWithNaN:
    """Which tokens have NaN among their activations, and the nodes that keep it from the search.

    A search over NaN has no order that it could rely on.

    Args:
        at: Writes the nodes.
        total: The sum of the absolute activations of each token, `[T, 1]` in float32. It is NaN only if one of them is.
    """

    def __init__(self, at: Nodes, total: ir.Value) -> None:
        self._at, self._total = at, total
        self.zero = at.array([0], ir.DataType.FLOAT)
        self.found = at("IsNaN", [total])

    def removed_from(self, sizes: ir.Value) -> ir.Value:
        """Return values with a row per token, and 0 in the rows of tokens with NaN."""
        return self._at("Where", [self.found, self.zero, sizes])

    def put_into(self, values: ir.Value) -> ir.Value:
        """Return values with a row per token, and NaN in the rows of tokens with NaN."""
        return self._at("Where", [self.found, self._total, values])


def _count_on(at: Nodes, cells: ir.Value) -> ir.Value:
    on = at.cast(at.cast(cells, ir.DataType.BOOL), ir.DataType.FLOAT)  # exact up to 2^24 features
    return at.cast(at("ReduceSum", [on, at.vector([1])], keepdims=1), ir.DataType.INT64)


def _set_outputs(
    model: ir.Model,
    spec: GraphSpec,
    at: Nodes,
    nan: TokensWithNaN,
    indices: ir.Value,
    strength: ir.Value,
    values: ir.Value,
    count: ir.Value,
) -> ir.Model:
    """Set the outputs of the graph: places without a feature have no index, and tokens with NaN have no features."""
    given = model.graph.outputs[-1]
    model.graph.outputs.clear()
    add_outputs(at, spec.outputs, nan, indices, strength, values, count)
    given.name = f"all.{HOOK_ACTS_POST}"
    return model


def add_outputs(
    at: Nodes,
    outputs: Sequence[TensorSpec],
    nan: TokensWithNaN,
    indices: ir.Value,
    strength: ir.Value,
    values: ir.Value,
    count: ir.Value,
) -> None:
    """Add the outputs of `features` to a graph: places without a feature, and tokens with NaN, have no index.

    Args:
        at: Writes the nodes.
        outputs: The outputs of `features`: indices, values and l0.
        nan: The tokens with NaN.
        indices: Ids of the strongest features, `[T, k]`.
        strength: Their activations in absolute value, the largest first.
        values: Their activations.
        count: The number of features that are on, `[T, 1]`.
    """
    indices = at("Where", [at("Greater", [strength, nan.zero]), indices, at.vector([-1])])
    values = nan.put_into(values)
    count = at("Squeeze", [at("Where", [nan.found, at.vector([-1]), count]), at.vector([1])])
    for tensor, value in zip(outputs, (indices, values, count), strict=True):
        dtype = ir.DataType(DTYPES[tensor.dtype].onnx)
        value = at.cast(value, dtype) if tensor.name == VALUES and dtype != ir.DataType.FLOAT else value
        value.name, value.shape, value.type = tensor.name, ir.Shape(tensor.shape), ir.TensorType(dtype)
        at.graph.outputs.append(value)
