"""Replaces each Gemm with a bias by a MatMul and an Add, for graphs that a GPU runs.

ONNX Runtime's CUDA kernel for `Gemm` first writes the bias to the whole result and lets the product add to it, which
takes longer than adding it afterwards: for all six hooks with 768 x 24576 on an H200 3 to 18 % at 64 and 1024 tokens,
and as long at 1 and 8192, where only bfloat16 is 7 % faster with `Gemm`; see benchmarks/results/gpu-nvidia-h200.json.
ONNX Runtime fuses the two nodes again on a CPU; on CUDA `runtime` disables that.
"""

import onnx_ir as ir

from .tools.building import Nodes


def gemm_to_matmul_and_add(model: ir.Model) -> ir.Model:
    """Split every `x @ W + b` whose b is a vector of parameters."""
    for gemm in list(model.graph):
        if gemm.op_type != "Gemm" or len(gemm.inputs) != 3 or gemm.attributes:
            continue
        x, matrix, bias = gemm.inputs
        if bias is None or not bias.is_initializer() or bias.shape is None or len(bias.shape) != 1:
            continue
        at, output = Nodes(model.graph, before=gemm), gemm.outputs[0]
        result = at("Add", [at("MatMul", [x, matrix]), bias])
        result.type, result.shape = output.type, output.shape
        ir.convenience.replace_nodes_and_values(model.graph, gemm, [gemm], [], [output], [result])
    return model
