"""Finds text where each feature is strongest: `python models/minilm/label.py`.

Exports the artifact again with labels: for each feature up to four pieces of text, the strongest first, with the place
of the token. It reads a sixth of the training text. The examples are a reading aid, not a claim about what a feature
means.
"""

import argparse
import heapq
from pathlib import Path

import torch
from corpus import load_texts
from encoder import MAX_TOKENS, MiniLM
from tqdm import tqdm
from train import ARTIFACT, HELD_OUT, HERE, export_sae

from runtime import Example, Label, Labels
from saeexport import load

SOURCE, LICENSE = "models/minilm/label.py, from the texts in models/README.md", "of the texts, see models/README.md"
TEXTS, EXAMPLES = 30_000, 4
CONTEXT = 5  # tokens on each side


def main() -> None:
    """Read the text, keep the strongest places of each feature, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=HERE / ".cache", metavar="FOLDER",
                        help="folder for the archives of text (default: models/minilm/.cache)")  # fmt: skip
    everything = load_texts(parser.parse_args().cache)
    texts = everything[HELD_OUT : HELD_OUT + TEXTS]
    model, sae = MiniLM(), load(ARTIFACT)
    best: list[list[tuple[float, int, int]]] = [[] for _ in range(sae.cfg.d_sae)]
    for positions, ids in tqdm(list(model.batches(texts)), desc="reading", disable=None):
        with torch.no_grad():
            acts = sae.encode(model.activations(ids))
        places = [(text, i) for text, row in zip(positions, ids, strict=True) for i in range(len(row))]
        values, rows = acts.topk(min(3 * EXAMPLES, len(acts)), dim=0)
        for feature in range(sae.cfg.d_sae):
            for value, row in zip(values[:, feature].tolist(), rows[:, feature].tolist(), strict=True):
                if value > 0:
                    best[feature].append((value, *places[row]))
            best[feature] = heapq.nlargest(3 * EXAMPLES, best[feature])
    examples = [find_examples(model, texts, places) for places in tqdm(best, desc="writing", disable=None)]
    labels = [Label(feature, None, tuple(found)) for feature, found in enumerate(examples) if found]
    export_sae(sae, model, everything[:HELD_OUT], Labels(sae.cfg.d_sae, labels, SOURCE, LICENSE))


def find_examples(model: MiniLM, texts: list[str], places: list[tuple[float, int, int]]) -> list[Example]:
    """Return the strongest places as text; places with the same text count once."""
    found: dict[tuple[str, int], Example] = {}
    for value, text, position in places:
        ids = model.tokenizer(texts[text], truncation=True, max_length=MAX_TOKENS)["input_ids"]
        before, after = ids[max(0, position - CONTEXT) : position], ids[position + 1 : position + 1 + CONTEXT]
        word = model.tokenizer.convert_ids_to_tokens([ids[position]])[0].removeprefix("##")
        pieces = [model.tokenizer.decode(part, skip_special_tokens=True) for part in (before, after)]
        start = len(pieces[0]) + 1 if pieces[0] else 0
        context = f"{pieces[0]} {word} {pieces[1]}".strip()
        found.setdefault((context, start), Example(context, ((start, start + len(word)),), round(value, 2)))
        if len(found) == EXAMPLES:
            break
    return list(found.values())


if __name__ == "__main__":
    main()
