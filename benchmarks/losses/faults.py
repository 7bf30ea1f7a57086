"""Measures which wrong weights the proof notices: `python -m benchmarks.losses.faults`.

Takes the real SAE in models/ in each dtype and its golden batch. It changes one random weight at a time by a fraction
of its value, computes what the fault changes at the hook behind it, and judges the result: with the errors of tokens
and elements only, and with those of columns, too. Writes benchmarks/results/faults.json.
"""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.report.markdown import markdown_table
from benchmarks.shared.machine import REAL_SAE, describe_machine, write_results
from benchmarks.shared.machine import RESULTS as FOLDER
from runtime import read_artifact
from runtime.arrays.dtypes import rounded
from runtime.arrays.tensor import Array
from runtime.artifact.budgets import FLOOR
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_INPUT, HOOK_RECONS
from runtime.parity.golden import load_golden
from runtime.parity.judge import judge
from runtime.parity.reference import Reference
from saeexport import load
from saeexport.original.exportable import in_dtype
from saeexport.proof.truth import reference_of

RESULTS = FOLDER / "faults.json"
CHANGES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01, 0.001)
DRAWS = 200


def main() -> None:
    """Measure, write and print."""
    x = load_golden(read_artifact(REAL_SAE)).original[HOOK_INPUT]
    result: dict[str, Any] = {
        **describe_machine(["torch", "numpy"]), "tokens": len(x), "draws": DRAWS, "changes": CHANGES, "lines": []
    }  # fmt: skip
    for dtype in FLOOR:
        sae = in_dtype(load(REAL_SAE), dtype)
        reference = reference_of(sae, rounded(x, dtype))
        with torch.no_grad():
            centered = sae.centered(torch.from_numpy(reference.original[HOOK_INPUT]).to(sae.W_enc.dtype))
        for hook, inputs, weight in (
            (HOOK_ACTS_PRE, centered.float().numpy(), sae.W_enc),
            (HOOK_RECONS, reference.original[HOOK_ACTS_POST], sae.W_dec),
        ):
            matrix = weight.detach().float().numpy()
            seen = {
                change: noticed(reference, hook, inputs, change * matrix)
                for change in tqdm(CHANGES, desc=f"{dtype} {hook}", disable=None)
            }
            result["lines"].append({"dtype": dtype, "hook": hook, "without": [], "with": []})
            for without_columns, with_columns in seen.values():
                result["lines"][-1]["without"].append(without_columns)
                result["lines"][-1]["with"].append(with_columns)
    write_results(RESULTS, result)
    print(table(result))


def noticed(reference: Reference, hook: str, inputs: Array, faults: Array) -> tuple[float, float]:
    """Return the share of single wrong weights that are noticed, without the errors of columns and with them.

    Args:
        reference: The reference without an intervention.
        hook: The hook behind the weights.
        inputs: What is multiplied by the weights, `(tokens, inputs)`.
        faults: By how much each weight is wrong, `(inputs, outputs)`.
    """
    draws = np.random.default_rng(0)
    used = np.flatnonzero((inputs != 0).any(axis=0))  # a feature that is off on every token shows nothing
    found = np.zeros((DRAWS, 2), bool)
    for row in found:
        i, j = draws.choice(used), draws.integers(faults.shape[1])
        y = reference.original[hook].copy()
        column = y.reshape(len(y), -1)[:, j]
        column[:] = rounded(
            (column + inputs[:, i].astype(np.float64) * faults[i, j]).astype(np.float32), reference.dtype
        )
        for place, by_column in enumerate(([], [hook])):
            (verdict,) = judge("", [hook], {hook: y}, reference, by_column)
            row[place] = bool(verdict.failures)
    without_columns, with_columns = found.mean(axis=0)
    return float(without_columns), float(with_columns)


def table(result: dict[str, Any]) -> str:
    """Return the shares as a Markdown table."""
    headings = ["one weight is off by", *(f"{change:.1%}".replace(".0%", "%") for change in result["changes"])]
    names = {HOOK_ACTS_PRE: "W_enc", HOOK_RECONS: "W_dec"}
    lines = []
    for line in result["lines"]:
        shares = [f"{after:.0%}" if before == after else f"{before:.0%} → {after:.0%}"
                  for before, after in zip(line["without"], line["with"], strict=True)]  # fmt: skip
        lines.append([f"`{names[line['hook']]}`, {line['dtype']}", *shares])
    return markdown_table(headings, lines)


if __name__ == "__main__":
    main()
