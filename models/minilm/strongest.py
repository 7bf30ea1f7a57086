"""Runs step 3 of `make demo`, without PyTorch: verifies models/minilm-layer3 and prints the strongest features.

    python models/minilm/strongest.py OUT

Reads what demo.py wrote to OUT. Needs only the packages of `pip install ".[cpu]"`: numpy, onnxruntime, safetensors.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

from runtime import SAESession, verify

ARTIFACT = Path(__file__).parent.parent / "minilm-layer3"
FEATURES = 3


def main(out: Path) -> int:
    """Verify the artifact, run it, and print the strongest features of each sentence; return 1 if it fails."""
    torch = "which can import it" if importlib.util.find_spec("torch") else "where it is not installed"
    print(f"Step 3 of 3: run models/{ARTIFACT.name} without PyTorch, in an environment {torch}.", flush=True)
    report = verify(ARTIFACT)
    if report.failures:
        print(report)
        return 1
    graphs = {verdict.graph for verdict in report.verdicts}
    print(f"  Verified: {len(report.verdicts)} outputs of {len(graphs)} graphs are within their budgets. The command\n"
          f"  `python -m runtime verify models/{ARTIFACT.name}` prints them.")  # fmt: skip

    sentences = json.loads((out / "tokens.json").read_text("utf-8"))
    with SAESession(ARTIFACT) as sae:
        output, cache = sae.run_with_cache(np.load(out / "activations.npy"))
        labels = sae.labels
    acts = cache["hook_sae_acts_post"]
    error = np.abs(output - cache["hook_sae_input"]).max()
    print(f"  Ran {len(acts)} tokens: {(acts > 0).sum(1).mean():.0f} of {acts.shape[1]} features are on per token.\n"
          f"  With the error term, the output differs from the input by at most {error:.1e}.")  # fmt: skip
    print(f"  The {FEATURES} strongest features of each sentence, their activations, and text where they are strong:")
    start = 0
    for tokens in sentences:
        block = acts[start + 1 : start + len(tokens) - 1]  # without [CLS] and [SEP]
        start += len(tokens)
        print(f"\n  {' '.join(tokens[1:-1]).replace(' ##', '')}")
        for feature in np.argsort(-block.max(0))[:FEATURES]:
            token = int(block[:, feature].argmax())
            print(f"    feature {feature:>4}  {block[token, feature]:5.2f} on {tokens[token + 1]!r}; also on: "
                  f"{' | '.join(map(str, labels[int(feature)].examples[:2]))}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
