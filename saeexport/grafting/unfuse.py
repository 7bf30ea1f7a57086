"""Takes the nodes that add to the residual stream and normalise it apart, so that the sum between can be replaced.

    SkipLayerNormalization(input, skip, gamma, beta?, bias?)     = LayerNormalization(input + skip + bias)
    SkipSimplifiedLayerNormalization(input, skip, gamma, bias?)  = SimplifiedLayerNormalization(input + skip + bias)

Their fourth output is the sum. An SAE that only reads the sum needs that output; to replace it, the node must be taken
apart, because its first output depends on the sum inside the node.

Source: ONNX Runtime, ContribOperators.md.
"""

import onnx_ir as ir

SKIP_LAYER_NORM, SKIP_SIMPLIFIED = "SkipLayerNormalization", "SkipSimplifiedLayerNormalization"
CONTRIB = "com.microsoft"
SUM = 3
"""Index of the output with the sum."""


def is_fused(node: ir.Node) -> bool:
    """Tell whether a node adds to the residual stream and normalises the sum."""
    return node.domain == CONTRIB and node.op_type in (SKIP_LAYER_NORM, SKIP_SIMPLIFIED)


def expose_residuals(graph: ir.Graph) -> None:
    """Name the sum inside each fused node, `<first output>.residual`, if it has no name yet."""
    for node in graph:
        if is_fused(node):
            if len(node.outputs) <= SUM:
                node.resize_outputs(SUM + 1)
                for unused in node.outputs[1:SUM]:
                    unused.name = unused.name or ""  # an output without a name cannot be written
            total, output = node.outputs[SUM], node.outputs[0]
            if not total.name:
                total.name = f"{output.name}.residual"
                total.type, total.shape = output.type, output.shape


def hide_residuals(graph: ir.Graph) -> None:
    """Remove the names of sums that nothing reads, so that the fused nodes are as they were."""
    for node in graph:
        if is_fused(node) and len(node.outputs) > SUM:
            total = node.outputs[SUM]
            if not total.uses() and not total.is_graph_output():
                node.resize_outputs(1)


def unfuse(graph: ir.Graph, total: ir.Value) -> ir.Value:
    """Take the fused node apart whose sum is `total`, and return the sum as the output of a node of its own.

    Args:
        graph: Graph of the node.
        total: A value of the graph. If it is not the sum of a fused node, it is returned as it is.
    """
    node = total.producer()
    if node is None or not is_fused(node) or len(node.outputs) <= SUM or node.outputs[SUM] is not total:
        return total
    simplified = node.op_type == SKIP_SIMPLIFIED
    given = [*node.inputs, None, None, None]
    first, skip, gamma = given[:3]
    beta, bias = (None, given[3]) if simplified else (given[3], given[4])
    epsilon = node.attributes["epsilon"].as_float() if "epsilon" in node.attributes else 1e-12
    nodes = [ir.node("Add", [first, skip], name=f"{node.name}/add")]
    if bias is not None:
        nodes[0].outputs[0].name = f"{total.name}.without_bias"
        nodes.append(ir.node("Add", [nodes[0].outputs[0], bias], name=f"{node.name}/add_bias"))
    new_total = nodes[-1].outputs[0]
    nodes.append(
        ir.node(
            "SimplifiedLayerNormalization" if simplified else "LayerNormalization",
            [new_total, gamma, *([] if beta is None else [beta])],
            attributes={"axis": -1, "epsilon": epsilon, "stash_type": 1},
            name=f"{node.name}/normalize",
        )
    )
    olds, news = [node.outputs[0], total], [nodes[-1].outputs[0], new_total]
    names = [value.name for value in olds]
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, olds, news)
    for value, name in zip(news, names, strict=True):
        value.name = name
    return new_total
