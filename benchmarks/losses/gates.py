"""Counts the gates that correct programs decide differently in float32: `python -m benchmarks.losses.gates`.

For gated encoders with random weights, it counts the gates that PyTorch decides otherwise than float64 does, and those
that ONNX Runtime decides otherwise than PyTorch does. Both are correct. `ALLOWED_CHANCE_FLIPS` in
runtime/parity/reference.py is for encoders where the first count is 0 by chance. Writes benchmarks/results/gates.json.
"""

import itertools
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.machine import describe_machine, write_results
from runtime.arrays.tensor import Array
from runtime.artifact.budgets import FACTOR
from runtime.parity.reference import ALLOWED_CHANCE_FLIPS

RESULTS = FOLDER / "gates.json"
D_IN, D_SAE, TOKENS = 256, 16384, 256
ENCODERS = 40


def main() -> None:
    """Count, print and write."""
    rows = [count_flips(seed) for seed in tqdm(range(ENCODERS), disable=None)]
    result = {
        **describe_machine(["torch", "onnxruntime", "numpy"]),
        "gates": D_SAE * TOKENS,
        "encoders": ENCODERS,
        "by_chance": sum(row["artifact"] > FACTOR * row["original"] for row in rows),
        "refused": sum(row["artifact"] > FACTOR * row["original"] + ALLOWED_CHANCE_FLIPS for row in rows),
        "rows": rows,
    }
    write_results(RESULTS, result)
    print(sentence(result))


def count_flips(seed: int) -> dict[str, int]:
    """Return how many gates PyTorch decides otherwise than float64, and ONNX Runtime otherwise than PyTorch."""
    draws = np.random.default_rng(seed)
    weights = (draws.standard_normal((D_IN, D_SAE)) * D_IN**-0.5).astype(np.float32)
    bias = (draws.standard_normal(D_SAE) * 0.3 - 1.0).astype(np.float32)
    x = draws.standard_normal((TOKENS, D_IN)).astype(np.float32)
    exact = x.astype(np.float64) @ weights.astype(np.float64) + bias > 0
    given = torch.from_numpy(x) @ torch.from_numpy(weights) + torch.from_numpy(bias)
    original = (given > 0).numpy()
    return {
        "original": int((original != exact).sum()),
        "artifact": int((gates_in_onnx_runtime(x, weights, bias) != original).sum()),
    }


def gates_in_onnx_runtime(x: Array, weights: Array, bias: Array) -> Array:
    """Return which gates are open, `(tokens, d_sae)`; the last token is a call of its own, as in a proof."""
    constants = {"weights": weights, "bias": bias, "zero": np.float32(0)}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["gate_pre"]),
            helper.make_node("Greater", ["gate_pre", "zero"], ["open"]),
        ],
        "gates",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", D_IN])],
        [helper.make_tensor_value_info("open", TensorProto.BOOL, ["tokens", D_SAE])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    bounds = (0, len(x) - 1, len(x))
    return np.concatenate([session.run(None, {"x": x[a:b]})[0] for a, b in itertools.pairwise(bounds)])


def sentence(result: dict[str, Any]) -> str:
    """Return the counts as a sentence."""
    return (
        f"Of {result['encoders']} gated encoders with {result['gates'] / 1e6:.0f} million gates each in float32, "
        f"{result['by_chance']} would fail without these {ALLOWED_CHANCE_FLIPS}, and {result['refused']} with them."
    )


if __name__ == "__main__":
    main()
