"""The second half of `make demo`, without PyTorch: the strongest features of each sentence.

    python models/minilm/strongest.py OUT

Reads what demo.py wrote to OUT. Needs numpy, onnxruntime and safetensors; says so if PyTorch could be imported after
all.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

from runtime import SAESession

ARTIFACT = Path(__file__).parent.parent / "minilm-layer3"
FEATURES = 3


def main(out: Path) -> None:
    """Encode, and print a few lines for each sentence."""
    labels = json.loads(ARTIFACT.with_suffix(".features.json").read_text("utf-8"))
    tokens = json.loads((out / "tokens.json").read_text("utf-8"))
    with SAESession(ARTIFACT) as sae:
        output, cache = sae.run_with_cache(np.load(out / "activations.npy"))
        torch = "is" if importlib.util.find_spec("torch") else "is not"
        print(f"{sae!r}; PyTorch {torch} installed in this environment")
    acts = cache["hook_sae_acts_post"]
    print(f"{len(acts)} tokens, {(acts > 0).sum(1).mean():.0f} of {acts.shape[1]} features on per token; the output "
          f"differs from the input by at most {np.abs(output - cache['hook_sae_input']).max():.1e}")  # fmt: skip
    start = 0
    for sentence in tokens:
        block = acts[start + 1 : start + len(sentence) - 1]  # without [CLS] and [SEP]
        start += len(sentence)
        print(f"\n{' '.join(sentence[1:-1]).replace(' ##', '')}")
        for feature in np.argsort(-block.max(0))[:FEATURES]:
            token = int(block[:, feature].argmax())
            print(f"  {feature:>5}  {block[token, feature]:5.2f} on {sentence[token + 1]!r}")
            print(f"         also on: {' | '.join(labels[feature][:3])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
