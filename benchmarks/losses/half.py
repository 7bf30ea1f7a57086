"""Measures what half precision loses: `python -m benchmarks.losses.half` (`make bench-half`).

Exports the real SAE in models/ in each dtype, on activations of its language model, and prints what the exports
measured: the errors of the artifact and of PyTorch in the same dtype, both against float64, and the fidelity to the
float32 original. Writes benchmarks/results/half.json.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.report.markdown import markdown_table
from benchmarks.shared.machine import REAL_SAE, describe_machine, write_results
from benchmarks.shared.machine import RESULTS as FOLDER
from runtime import read_artifact
from runtime.arrays.dtypes import BFLOAT16, FLOAT16
from runtime.artifact.names import HOOK_ACTS_PRE, HOOK_INPUT, HOOK_RECONS
from runtime.parity.golden import load_golden
from saeexport import export, load

RESULTS = FOLDER / "half.json"
SHOWN_HOOKS = (HOOK_ACTS_PRE, HOOK_RECONS)


def main() -> None:
    """Measure, write and print."""
    golden = load_golden(read_artifact(REAL_SAE)).original[HOOK_INPUT]
    result: dict[str, Any] = {**describe_machine(["torch", "onnxruntime", "numpy"]), "tokens": len(golden), "lines": []}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in (FLOAT16, BFLOAT16):
            manifest = export(load(REAL_SAE), Path(folder) / dtype, activations=golden, dtype=dtype).manifest
            assert manifest.parity is not None
            assert manifest.fidelity is not None
            result["lines"].append({
                "dtype": dtype, "bytes": manifest.files[manifest.weights].bytes,
                "parity": {hook: dataclasses.asdict(manifest.parity.hooks[hook]) for hook in SHOWN_HOOKS},
                "fidelity": dataclasses.asdict(manifest.fidelity),
            })  # fmt: skip
    write_results(RESULTS, result)
    print(table(result))


def table(result: dict[str, Any]) -> str:
    """Return the losses as a Markdown table."""
    errors_of = [f"`{hook.removeprefix('hook_sae_')}`: artifact / PyTorch / budget" for hook in SHOWN_HOOKS]
    headings = ["dtype", "weights", *errors_of, "features kept", "new", "L0", "variance explained"]
    lines = []
    for line in result["lines"]:
        lost, features = line["fidelity"], line["fidelity"]["features"]
        records = [line["parity"][hook] for hook in SHOWN_HOOKS]
        errors = [" / ".join(f"{record[of]['token']:.1e}" for of in ("artifact", "original", "budget"))
                  for record in records]  # fmt: skip
        lines.append([
            line["dtype"], f"{line['bytes'] / 1e6:.1f} MB", *errors, f"{features['kept']:.2%}",
            f"{features['gained']:.2%}", f"{features['l0_original']:.2f} → {features['l0']:.2f}",
            f"{lost['explained_original']:.4f} → {lost['explained']:.4f}",
        ])  # fmt: skip
    return markdown_table(headings, lines)


if __name__ == "__main__":
    main()
