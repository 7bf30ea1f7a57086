"""How much larger an artifact's error may honestly be than PyTorch's: `python -m benchmarks.losses.parity`.

Exports SAEs of several sizes and sparsities, one of every other architecture, and each in half precision, and prints
for each computed hook the artifact's error divided by the original's (the larger of the token and the element ratio,
one rounding subtracted); in the last column the largest one under an intervention, as the exporter proves it.
`runtime.parity.FACTOR` has to lie above what is seen here. Writes benchmarks/results/parity.json.
"""

import dataclasses
import importlib.metadata
import json
import math
import platform
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.shared.machine import ROOT
from runtime.arrays.dtypes import FLOAT32
from runtime.arrays.tensor import Array
from runtime.artifact.manifest import HookParity
from runtime.artifact.names import HOOK_ACTS_POST
from runtime.parity.golden import load_golden
from runtime.parity.reference import COMPUTED_HOOKS, FACTOR, FLOOR
from saeexport import HookedSAE, export
from saeexport.original.architectures import ARCHITECTURES
from saeexport.original.hooked_sae import NORMALIZATIONS

RESULTS = ROOT / "benchmarks" / "results" / "parity.json"
SIZES = [(4, 8), (48, 512), (384, 3072), (768, 24576), (2304, 16384)]
ON = {"sparse": 0.002, "some": 0.05, "half": 0.5, "all": 1.0}  # fraction of the features that are on
TOKENS = [1, 64]
CASE = ("architecture", "normalization", "dtype", "d_in", "d_sae", "on", "tokens")
STEERED = "hook_sae_steered"  # the column of the intervention, beside those of the hooks


def main() -> None:
    """Measure, print, write."""
    rows = []
    cases = [("standard", "none", FLOAT32, *size, on, tokens) for size in SIZES for on in ON for tokens in TOKENS]
    cases += [(name, how, dtype, *size, "some", tokens) for dtype in FLOOR for name in ARCHITECTURES
              for how in NORMALIZATIONS if how == "none" or "transcoder" not in name for size in SIZES[1:3]
              for tokens in TOKENS if (name, how, dtype) != ("standard", "none", FLOAT32)]  # fmt: skip
    for case in tqdm(cases, disable=None):
        architecture, normalization, dtype, d_in, d_sae, on, tokens = case
        x = np.random.default_rng(1).standard_normal((tokens, d_in)).astype(np.float32)
        sae = sae_of(architecture, normalization, d_in, d_sae, on, x)
        rows.append({**dict(zip(CASE, case, strict=True)), **ratios(sae, x, dtype)})
    columns = (*COMPUTED_HOOKS, STEERED)
    worst = {
        dtype: max(row.get(column, 0.0) for row in rows if row["dtype"] == dtype for column in columns)
        for dtype in FLOOR
    }
    widths = (25, 22, 9, 6, 6, 7, 7)
    print("  ".join(f"{key:<{width}}" for key, width in zip(CASE, widths, strict=True))
          + f"{'L0':>8}  " + "  ".join(c[9:] for c in columns))  # fmt: skip
    for row in rows:
        numbers = "  ".join(f"{row.get(column, math.nan):>{len(column) - 9}.2f}" for column in columns)
        print("  ".join(f"{row[key]:<{width}}" for key, width in zip(CASE, widths, strict=True))
              + f"{row['l0']:>8.1f}  {numbers}")  # fmt: skip
    print(f"worst ratio {', '.join(f'{ratio:.2f} in {dtype}' for dtype, ratio in worst.items())}; FACTOR is {FACTOR}")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnxruntime", "numpy")}
    machine = {"date": date.today().isoformat(), "machine": platform.machine(), "threads": torch.get_num_threads()}
    RESULTS.parent.mkdir(exist_ok=True)
    head = json.dumps({**machine, **versions, "worst": worst})
    table = ",\n".join(json.dumps(row) for row in rows)
    RESULTS.write_text(f'{head[:-1]}, "rows": [\n{table}\n]}}\n')


def sae_of(architecture: str, normalization: str, d_in: int, d_sae: int, on: str, x: Array) -> HookedSAE:
    """Return an SAE whose bias lets a fraction of the features on for `x`; some of these, with a threshold or k."""
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
    """Return the artifact's error over the original's at each hook, as the exporter proves it."""
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(sae, Path(folder) / "sae", activations=x, dtype=dtype)
        golden = load_golden(artifact)
    record = artifact.manifest.parity
    assert record is not None
    return {
        "l0": float((golden.clean.original[HOOK_ACTS_POST] != 0).sum(1).mean()),
        **{hook: ratio(measured, golden.clean.floor(hook)) for hook, measured in record.hooks.items()},
        STEERED: max(ratio(measured, golden.floor(hook)) for hook, measured in record.steered.items()),
    }


def ratio(measured: HookParity, floor: float) -> float:
    """Return the error of the artifact over the original's own."""
    artifact, original = measured.artifact, measured.original
    pairs = ((artifact.token, original.token), (artifact.element, original.element))
    return round(max((max(error - floor, 0.0) / own if own else 0.0) for error, own in pairs), 3)


if __name__ == "__main__":
    main()
