"""Measures how much larger the error of a correct artifact is than PyTorch's: `python -m benchmarks.losses.parity`.

Exports SAEs of several sizes and sparsities, one of every other architecture, and each in half precision. For each
computed hook it prints the artifact's error divided by the original's: the larger of the token and the element ratio,
with one rounding subtracted. `steered` is the largest ratio under an intervention, as the exporter proves it. `FACTOR`
in runtime/artifact/budgets.py must be above all of them. In half precision, `column` is the largest ratio of the errors
of a column in `encode` and `decode`, where the original's error counts as at least a quarter
of a rounding. Writes benchmarks/results/parity.json.
"""

import dataclasses
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.report.markdown import markdown_table
from benchmarks.shared.machine import RESULTS as FOLDER
from benchmarks.shared.machine import describe_machine
from runtime import Artifact, SAESession
from runtime.arrays.dtypes import FLOAT32, widened
from runtime.arrays.tensor import Array, feed_of
from runtime.artifact.budgets import FACTOR, FLOOR
from runtime.artifact.contracts import CPU_VARIANTS, DECODE, ENCODE
from runtime.artifact.manifest import HookParity
from runtime.artifact.names import HOOK_ACTS_POST, HOOK_ACTS_PRE, HOOK_INPUT, HOOK_RECONS, INPUT
from runtime.parity.golden import load_golden
from runtime.parity.reference import COMPUTED_HOOKS, Reference
from saeexport import HookedSAE, export
from saeexport.original.architectures import ARCHITECTURES
from saeexport.original.hooked_sae import NORMALIZATIONS

RESULTS = FOLDER / "parity.json"
SIZES = [(4, 8), (48, 512), (384, 3072), (768, 24576), (2304, 16384)]
ON = {"sparse": 0.002, "some": 0.05, "half": 0.5, "all": 1.0}  # fraction of the features that are on
TOKENS = [4, 64]
CASE = ("architecture", "normalization", "dtype", "d_in", "d_sae", "on", "tokens")
STEERED = "hook_sae_steered"  # the intervention, beside the hooks
COLUMN = "hook_sae_column"  # the errors of columns, beside the hooks


def main() -> None:
    """Measure, print and write."""
    rows = []
    cases = [("standard", "none", FLOAT32, *size, on, tokens) for size in SIZES for on in ON for tokens in TOKENS]
    cases += [(name, how, dtype, *size, "some", tokens) for dtype in FLOOR for name in ARCHITECTURES
              for how in NORMALIZATIONS if how == "none" or "transcoder" not in name for size in SIZES[1:3]
              for tokens in TOKENS if (name, how, dtype) != ("standard", "none", FLOAT32)]  # fmt: skip
    for case in tqdm(cases, disable=None):
        architecture, normalization, dtype, d_in, d_sae, on, tokens = case
        x = np.random.default_rng(1).standard_normal((tokens, d_in)).astype(np.float32)
        sae = make_sae(architecture, normalization, d_in, d_sae, on, x)
        rows.append({**dict(zip(CASE, case, strict=True)), **ratios(sae, x, dtype)})
    columns = (*COMPUTED_HOOKS, STEERED)
    worst = {
        dtype: max(row.get(column, 0.0) for row in rows if row["dtype"] == dtype for column in columns)
        for dtype in FLOOR
    }
    print(markdown_table(
        (*CASE, "L0", *(column.removeprefix("hook_sae_") for column in (*columns, COLUMN))),
        [[*(str(row[key]) for key in CASE), f"{row['l0']:.1f}",
          *(f"{row.get(column, math.nan):.2f}" for column in (*columns, COLUMN))] for row in rows],
    ))  # fmt: skip
    by_column = max(row.get(COLUMN, 0.0) for row in rows)
    worst_text = ", ".join(f"{value:.2f} in {dtype}" for dtype, value in worst.items())
    print(f"The largest ratio is {worst_text}. FACTOR is {FACTOR}.")
    print(f"The largest ratio of a column is {by_column:.2f}. FACTOR is {FACTOR}.")
    machine = describe_machine(["torch", "onnxruntime", "numpy"])
    head = json.dumps({**machine, "threads": torch.get_num_threads(), "worst": worst, "column": by_column})
    body = ",\n".join(json.dumps(row) for row in rows)  # one row per line
    RESULTS.write_text(f'{head[:-1]}, "rows": [\n{body}\n]}}\n')


def make_sae(architecture: str, normalization: str, d_in: int, d_sae: int, on: str, x: Array) -> HookedSAE:
    """Return an SAE whose bias turns a fraction of the features on for `x`; a threshold or k keeps some of them."""
    kind = ARCHITECTURES[architecture]
    options = {"k": max(1, round(ON[on] * d_sae / 2)), "d_out": d_in + 1, "normalize_activations": normalization,
               "use_error_term": "transcoder" not in architecture}  # fmt: skip
    known = {field.name for field in dataclasses.fields(kind.Config)}
    config = {"d_in": d_in, "d_sae": d_sae, "hook_name": "h", "seed": 0}
    sae = kind(config | {key: value for key, value in options.items() if key in known}).cpu()
    with torch.no_grad():
        acts_pre = sae.preactivations(torch.from_numpy(x))
        quantile = -acts_pre.flatten()[:100_000].quantile(1 - ON[on]) + (1e-3 if on == "all" else 0)
        for name, shift in (("b_enc", quantile), ("b_gate", quantile), ("b_mag", quantile + 0.2), ("threshold", 0.1),
                            ("r_mag", 0.1)):  # fmt: skip
            if hasattr(sae, name):
                getattr(sae, name).add_(shift)
    return sae


def ratios(sae: HookedSAE, x: Array, dtype: str) -> dict[str, float]:
    """Return the artifact's error divided by the original's at each hook, as the exporter proves it."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(sae, Path(folder) / "sae", activations=x, dtype=dtype)
        golden = load_golden(artifact)
        columns = {COLUMN: column_ratio(artifact, golden.clean)} if golden.clean.judges_columns else {}
    record = artifact.manifest.parity
    assert record is not None
    return {
        "l0": float((golden.clean.original[HOOK_ACTS_POST] != 0).sum(1).mean()),
        **{hook: ratio(measured, golden.clean.floor(hook)) for hook, measured in record.hooks.items()},
        STEERED: max(ratio(measured, golden.floor(hook)) for hook, measured in record.steered.items()),
        **columns,
    }


def column_ratio(artifact: Artifact, clean: Reference) -> float:
    """Return the largest ratio of the artifact's error in a column to the original's, or to a quarter of a rounding."""
    dtype, largest = artifact.manifest.sae.dtype, 0.0
    with SAESession(artifact, "cpu") as session:
        for stage, given, wanted in ((ENCODE, HOOK_INPUT, HOOK_ACTS_PRE), (DECODE, HOOK_ACTS_POST, HOOK_RECONS)):
            arrays = {given: clean.original[given], INPUT: clean.original[HOOK_INPUT]}
            graph = CPU_VARIANTS[dtype][stage]
            feeds = {
                tensor.name: feed_of(arrays[tensor.name], dtype) for tensor in artifact.manifest.graphs[graph].inputs
            }
            errors = clean.column_errors(wanted, widened(np.asarray(session.run_graph(graph, feeds)[wanted])))
            budgets = clean.column_budgets(wanted)
            largest = max(largest, float((errors / np.where(budgets > 0, budgets, 1.0)).max()))
    return round(FACTOR * largest, 3)


def ratio(measured: HookParity, floor: float) -> float:
    """Return the error of the artifact divided by the original's."""
    artifact, original = measured.artifact, measured.original
    pairs = ((artifact.token, original.token), (artifact.element, original.element))
    return round(max((max(error - floor, 0.0) / own if own else 0.0) for error, own in pairs), 3)


if __name__ == "__main__":
    main()
