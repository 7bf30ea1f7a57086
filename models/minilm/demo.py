"""The first half of `make demo`, with PyTorch: sentences to activations, and the committed SAE exported again.

    python models/minilm/demo.py OUT [SENTENCE ...]

Writes OUT/activations.npy and OUT/tokens.json for strongest.py, and OUT/minilm-layer3; exits 1 unless its graphs and
weights are byte for byte those of models/minilm-layer3.
"""

import json
import shutil
import sys
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
    """Make both, and compare."""
    model = MiniLM()
    tokens = [model.tokens(sentence) for sentence in sentences]
    activations = [model.activations([model.tokenizer(s, truncation=True)["input_ids"]]).numpy() for s in sentences]
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "activations.npy", np.concatenate(activations))
    (out / "tokens.json").write_text(json.dumps(tokens), "utf-8")

    again = out / ARTIFACT.name
    if again.exists():
        shutil.rmtree(again)
    export(load(ARTIFACT), again, activations=np.concatenate(activations))
    print(f"exported {ARTIFACT.name} again from its own weights; compared with the committed artifact:")
    differ = False
    for name in (*map(graph_file, CONTRACTS), "weights.safetensors"):
        same = (again / name).read_bytes() == (ARTIFACT / name).read_bytes()
        differ |= not same
        print(f"  {name:<20} {(again / name).stat().st_size:>10,} bytes  {'identical' if same else 'DIFFERENT'}")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or SENTENCES))
