"""Measures how unevenly the features of a real SAE are on: `python -m benchmarks.losses.firing`.

Runs the SAE of models/minilm-layer3 on held-out text of its corpus (which `npm` fetches the first time) and writes
benchmarks/results/firing.json: how much features differ in how often they are on, how much tokens differ in L0, and the
share of features that are on for any of n consecutive tokens. `benchmarks/shared/saes.py` makes SAEs of other sizes
with the same spread; the share serves to compare them with the real one.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.shared.machine import REAL_SAE, describe_machine, write_results
from benchmarks.shared.saes import FIRING
from runtime.arrays.tensor import Array
from saeexport import load

SCRIPTS = REAL_SAE.with_name("minilm")


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=SCRIPTS / ".cache", metavar="FOLDER",
                        help="folder for the archives of text (default: models/minilm/.cache)")  # fmt: skip
    parser.add_argument("--texts", type=int, default=1000, metavar="N", help="number of texts (default: 1000)")
    options = parser.parse_args()
    sys.path.append(str(SCRIPTS))
    from corpus import load_texts  # type: ignore[import-not-found]
    from encoder import MiniLM  # type: ignore[import-not-found]

    sae, model = load(REAL_SAE), MiniLM()
    blocks: dict[int, Array] = {}
    with torch.no_grad():
        batches = list(model.batches(load_texts(options.cache)[: options.texts]))
        for positions, ids in tqdm(batches, desc="text", disable=None):
            on = (sae.encode(model.activations(ids)) > 0).numpy()
            ends = np.cumsum([len(text) for text in ids])
            blocks |= dict(zip(positions, np.split(on, ends[:-1]), strict=True))
    result = summarize(np.concatenate([blocks[i] for i in sorted(blocks)]))
    write_results(FIRING, {**describe_machine(["torch", "transformers"]), "texts": options.texts, **result})
    print(FIRING.read_text(), end="")


def summarize(on: Array) -> dict[str, object]:
    """Return the statistics of which features are on for which tokens.

    Args:
        on: `(tokens, d_sae)` bool, the tokens in the order of the text.
    """
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
