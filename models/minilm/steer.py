"""Measures what single features do to the similarity of sentences: `python models/minilm/steer.py`.

There are twelve sentences, three on each of four topics. For each topic the script finds the feature that is on in all
three of its sentences and weakest in the other nine. It scales this feature, from 0 (ablated) to 8 times, in the third
layer of the sentence encoder, and compares the cosines of the embeddings. `runtime` runs the SAE, PyTorch the language
model.

Writes steering.json and steering.png, which the documentation shows, and prints a table.
"""

import importlib.metadata
import itertools
import json
import platform
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from encoder import MiniLM

from runtime import SAESession, Scale
from runtime.arrays.tensor import Array

HERE = Path(__file__).parent
ARTIFACT = HERE.parent / "minilm-layer3"
RESULT = HERE / "steering.json"
TOPICS = {
    "music": [
        "She plays the violin in a small orchestra.",
        "The song was recorded in an old studio.",
        "He listened to the music all evening.",
    ],
    "illness": [
        "The doctor prescribed antibiotics for the infection.",
        "The patient was treated for a rare disease.",
        "Her illness kept her at home all evening.",
    ],
    "boats": [
        "A whale surfaced beside the old wooden ship.",
        "The ship left the harbor at dawn.",
        "Fishermen repaired their boat at dawn.",
    ],
    "money": [
        "The central bank raised interest rates.",
        "He borrowed money to buy a small house.",
        "The loan was paid back within a year.",
    ],
}
SCALES = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]


def main() -> None:
    """Find the features, scale them, plot, write and print."""
    model, result = MiniLM(), {}
    with SAESession(ARTIFACT) as sae:
        strongest = strongest_activations(model, sae)
        for i, topic in enumerate(TOPICS):
            own = range(3 * i, 3 * i + 3)
            feature, inside, outside = find_feature(strongest, own)
            rows = [cosines(model, sae, feature, scale, own) for scale in SCALES]
            result[topic] = {
                "feature": feature,
                "examples": [str(example) for example in sae.labels[feature].examples],
                "least_in_its_sentences": round(inside, 2),
                "most_in_the_others": round(outside, 2),
                "scales": SCALES,
                "cosines_of_its_sentences": [row[0] for row in rows],
                "cosines_of_the_others": [row[1] for row in rows],
            }
    plot(result)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnxruntime")}
    result["made_with"] = {**versions, "python": platform.python_version()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def strongest_activations(model: MiniLM, sae: SAESession) -> Array:
    """Return the largest activation of each feature in each sentence, without `[CLS]` and `[SEP]`: `(12, d_sae)`."""
    return np.stack([
        sae.encode(model.activations([model.ids(sentence)]).numpy())[1:-1].max(axis=0)
        for sentence in itertools.chain(*TOPICS.values())
    ])  # fmt: skip


def find_feature(strongest: Array, own: range) -> tuple[int, float, float]:
    """Return the feature that is specific to the sentences `own`, its minimum there and its maximum elsewhere."""
    inside, outside = strongest[own].min(axis=0), np.delete(strongest, own, axis=0).max(axis=0)
    feature = int(np.argmax(inside - outside))
    return feature, float(inside[feature]), float(outside[feature])


def cosines(model: MiniLM, sae: SAESession, feature: int, scale: float, own: range) -> tuple[list[float], list[float]]:
    """Return the cosines between the sentences `own`, and between all other sentences, with the feature scaled."""
    with sae.steering({feature: Scale(scale)}):
        embeddings = model.embeddings(
            list(itertools.chain(*TOPICS.values())), lambda hidden: torch.from_numpy(sae(hidden.numpy()))
        ).numpy()
    table = embeddings @ embeddings.T
    others = [i for i in range(len(table)) if i not in own]
    inside, outside = (
        [round(float(table[i, j]), 4) for i, j in itertools.combinations(group, 2)] for group in (own, others)
    )
    return inside, outside


def plot(result: dict) -> None:
    """Draw the cosines over the scale, with a panel for each topic."""
    figure, axes = plt.subplots(1, len(result), figsize=(12, 3.2), sharey=True, layout="constrained")
    for axis, (topic, row) in zip(axes, result.items(), strict=True):
        x = range(len(SCALES))
        lines = [axis.plot(x, row[key], color=color, linewidth=width, marker=marker)
                 for key, color, width, marker in (("cosines_of_the_others", "lightgray", 0.8, None),
                                                   ("cosines_of_its_sentences", "tab:blue", 2, "o"))]  # fmt: skip
        axis.set(title=f"feature {row['feature']} ({topic})", xlabel="scaled by", xticks=x)
        axis.set_xticklabels(["ablated" if scale == 0 else f"{scale:g}" for scale in SCALES])
        axis.axvline(SCALES.index(1.0), color="black", linewidth=0.6, linestyle=":")
        axis.legend([lines[1][0], lines[0][0]], [f"pairs on {topic}", "other pairs"], frameon=False, loc="upper left",
                    fontsize="small")  # fmt: skip
    axes[0].set_ylabel("cosine of sentence embeddings")
    axes[0].set_ylim(top=0.85)
    figure.savefig(RESULT.with_suffix(".png"), dpi=110)


def table(result: dict) -> str:
    """Return the means as a Markdown table; the last column is the largest change of any pair of other sentences."""
    lines = ["| feature | on in | as it is | ablated | 4 times | other pairs change by at most |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for topic in TOPICS:
        row = result[topic]
        own = {scale: np.mean(pairs) for scale, pairs in zip(SCALES, row["cosines_of_its_sentences"], strict=True)}
        others = dict(zip(SCALES, map(np.array, row["cosines_of_the_others"]), strict=True))
        change = max(np.abs(others[scale] - others[1.0]).max() for scale in (0.0, 4.0))
        means = " | ".join(f"{own[scale]:.2f}" for scale in (1.0, 0.0, 4.0))
        lines.append(f"| {row['feature']} | {topic} | {means} | {change:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
