"""How unevenly the features of a real SAE fire: `python -m benchmarks.losses.firing`.

Runs the SAE of models/minilm-layer3 on held-out text of its corpus (which `npm` fetches the first time) and writes
benchmarks/results/firing.json, from which `benchmarks/shared/saes.py` makes SAEs of other sizes: by how much features
differ in how often they are on, and tokens in how many are on for them. Also the share of features that are on for any
of n tokens in a row, which those SAEs are to be compared with.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.shared.machine import ROOT, machine
from benchmarks.shared.saes import FIRING
from runtime.arrays.tensor import Array
from saeexport import load

MINILM = ROOT / "models" / "minilm"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=MINILM / ".cache", help="for the archives of text")
    parser.add_argument("--texts", type=int, default=1000)
    options = parser.parse_args()
    sys.path.append(str(MINILM))
    from corpus import load_texts  # type: ignore[import-not-found]
    from encoder import MiniLM  # type: ignore[import-not-found]

    sae, model = load(MINILM.with_name("minilm-layer3")), MiniLM()
    blocks: dict[int, Array] = {}
    with torch.no_grad():
        batches = list(model.batches(load_texts(options.cache)[: options.texts]))
        for positions, ids in tqdm(batches, desc="text", disable=None):
            on = (sae.encode(model.activations(ids)) > 0).numpy()
            ends = np.cumsum([len(text) for text in ids])
            blocks |= dict(zip(positions, np.split(on, ends[:-1]), strict=True))
    result = facts(np.concatenate([blocks[i] for i in sorted(blocks)]))
    text = json.dumps({**machine(["torch", "transformers"]), "texts": options.texts, **result}, indent=1) + "\n"
    FIRING.write_text(text)
    print(text, end="")


def facts(on: Array) -> dict[str, object]:
    """Return what is known of which features are on for which tokens, `(tokens, d_sae)` bool, text after text."""
    l0, frequency = on.sum(axis=1), on.mean(axis=0)
    logs = np.log10(frequency[frequency > 0])
    runs = [n for n in (1, 8, 64, 512, 4096) if n <= len(on)]
    shares = {n: np.mean([on[i : i + n].any(axis=0).mean() for i in range(0, len(on) - n + 1, max(n, 256))])
              for n in runs}  # fmt: skip
    return {
        "tokens": len(on),
        "features": on.shape[1],
        "l0_mean": round(float(l0.mean()), 2),
        "l0_std_over_mean": round(float(l0.std() / l0.mean()), 3),
        "log10_frequency_mean": round(float(logs.mean()), 3),
        "log10_frequency_std": round(float(logs.std()), 3),
        "never_on": round(float((frequency == 0).mean()), 4),
        "fired_share_of_tokens_in_a_row": {str(n): round(float(share), 4) for n, share in shares.items()},
    }


if __name__ == "__main__":
    main()
