"""The graphs that find the strongest features of many tokens on a GPU, among activations that are there already.

They depend on the dtype alone, so `runtime` has them, see `runtime/devices/cuda/search.py`. It cannot write ONNX files:

    python -m saeexport.graphs.search

writes them anew.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from runtime.arrays.dtypes import DTYPES, FLOAT32, SAE_DTYPES
from runtime.artifact.contracts import FEATURES, PORTABLE
from runtime.artifact.manifest import TensorSpec
from runtime.artifact.names import HOOK_ACTS_POST, L0, TOKENS, VALUES, K
from runtime.devices.cuda import search
from runtime.devices.cuda.search import BLOCK, FIRST_IDS, GROUP

from .passes.tools.building import Nodes
from .passes.top import TokensWithNaN, add_outputs
from .portable import IR_VERSION, OPSET


def search_graph(dtype: str) -> ir.Model:
    """Return the graph from activations, none of them negative, to the outputs of `features`.

    The k strongest features lie in k groups with the largest maxima. TopK, which takes most of the time where it is
    given every feature, gets the maxima, and then the members of these groups. A group has every n-th feature, n being
    the number of groups, so that the maxima are those of `GROUP` slices of the activations, which ONNX Runtime computes
    faster than maxima of neighbours. Sums over the features are products with ones, which are faster than ReduceSum.
    """
    kind = ir.DataType(DTYPES[dtype].onnx)
    acts = ir.val(HOOK_ACTS_POST, kind, [TOKENS, "d_sae"])
    first_ids = ir.val(FIRST_IDS, ir.DataType.INT64, [1, GROUP, 1])
    k = ir.val(K, ir.DataType.INT64, [1])
    graph = ir.Graph([acts, first_ids, k], [], nodes=[], name="search", opset_imports={"": OPSET})
    at = Nodes(graph)

    def in_float32(value: ir.Value) -> ir.Value:
        return value if dtype == FLOAT32 else at.cast(value, ir.DataType.FLOAT)

    def sum_of_each_token(values: ir.Value) -> ir.Value:
        blocks = at("Reshape", [values, at.vector([0, -1, BLOCK])])
        sums = at("MatMul", [blocks, at.array(np.ones((BLOCK, 1)), kind)])  # exact for up to 256 ones in bfloat16
        return at("ReduceSum", [in_float32(sums), at.vector([1])], keepdims=0)

    nan = TokensWithNaN(at, sum_of_each_token(acts))
    most = at("Max", at.multi_output("Split", [acts], GROUP, axis=1, num_outputs=GROUP))
    _, groups = at.multi_output("TopK", [nan.removed_from(in_float32(most)), k], 2, axis=1, sorted=0)
    ids = at("Reshape", [at("Add", [at("Unsqueeze", [groups, at.vector([1])]), first_ids]), at.vector([0, -1])])
    members = in_float32(at("GatherElements", [acts, ids], axis=1))
    strength, places = at.multi_output("TopK", [nan.removed_from(members), k], 2, axis=1)
    indices = at("GatherElements", [ids, places], axis=1)
    count = at.cast(sum_of_each_token(at("Sign", [acts])), ir.DataType.INT64)
    shapes = {L0: (TOKENS,)}
    outputs = [
        TensorSpec(name, dtype if name == VALUES else "int64", shapes.get(name, (TOKENS, K)))
        for name in PORTABLE[FEATURES].outputs
    ]
    add_outputs(at, outputs, nan, indices, strength, strength, count)
    return ir.Model(graph, ir_version=IR_VERSION)


if __name__ == "__main__":
    for each in SAE_DTYPES:
        ir.save(search_graph(each), Path(search.__file__).with_name(f"search_{each}.onnx"))
